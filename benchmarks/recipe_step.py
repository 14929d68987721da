"""What does a recipe add to a training step?

As `step.py`, whose networks and layers these are: the whole step with the losses of a recipe, next to the plain one.
"""

from __future__ import annotations

import torch
from common import Report, interleaved, parser, start
from step import AGAIN, ON_CPU, ON_GPU, PLAIN, QUICK, REACH_ON_GPU, Bench

from batchcam_captum.training import RECIPES, recipe_losses

#: Of the small networks and ResNet-18 and ConvNeXt-V2-Tiny; there are no figures to reach for the others.
MODELS = ("simple_cnn", "resnet18", "convnextv2_tiny")


def main() -> None:
    made = parser(__doc__, rounds=30, seconds=60)
    made.add_argument("--models", nargs="+", default=MODELS, help="only these")
    options = start(made)
    options.dtype, options.channels_last, options.compiled = "float32", False, False
    on_gpu = torch.device(options.device).type == "cuda"
    setups = [QUICK] if options.quick else ON_GPU if on_gpu else ON_CPU
    report = Report("recipe_step", options, "Forward, loss, backward and SGD with momentum; train mode.")
    for setup in setups:
        case = f"{setup.model}, batch {setup.batch}, {setup.size} px"
        if setup.model not in options.models or report.has(case):
            continue
        bench = Bench(setup, options)
        objectives = {PLAIN: bench.plain, AGAIN: bench.plain}
        for recipe in RECIPES:
            made = recipe_losses(_loader(bench), 10, recipe=recipe, device=options.device, progress=False)
            # As they are after the warm-up: a weight of 0 would not be computed at all.
            losses = {
                name: (loss, weight(10**9) if callable(weight) else weight)
                for name, (loss, weight) in made.items()
            }
            objectives[recipe] = bench.regularized(losses, setup.layer)  # type: ignore[arg-type]
        cases = {name: bench.step(objective) for name, objective in objectives.items()}
        times = interleaved(cases, options, warm_up=3 if on_gpu else 1)
        report.add_case(case, times=times, **setup._asdict())
        for name in RECIPES:
            reach = None if setup.model == "simple_cnn" else REACH_ON_GPU
            report.add_figure(case, f"{name} ÷ {PLAIN}", times.ratio(name, PLAIN), reach=reach)
        report.add_figure(case, f"{AGAIN} ÷ {PLAIN}", times.ratio(AGAIN, PLAIN), reach=None)
    report.finish()


def _loader(bench: Bench) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Objects in the middle of dark images."""
    images = torch.zeros_like(bench.images)
    quarter = bench.setup.size // 4
    images[:, :, quarter:-quarter, quarter:-quarter] = 0.9
    return [(images, bench.labels)]


if __name__ == "__main__":
    main()
