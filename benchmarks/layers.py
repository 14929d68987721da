"""What do three layers at once cost, next to one of them?

The reach is set against the earliest of the three alone: its gradient has to come down all the way in any case, and the others
lie on that way. Next to the last of them alone, whose gradient ends at the head, a large part of the difference is that way; that
ratio, and the one to three separate calls, stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from common import Call, Report, interleaved, parser, start
from models import Network, network

from batchcam_captum import BatchGradCam

SETUPS = {
    "resnet18": ("layer2", "layer3", "layer4"),
    "resnet50": ("layer2", "layer3", "layer4"),
    "convnextv2_tiny": ("stages.1", "stages.2", "stages.3"),
}
REACH = 1.15
THREE, EARLIEST, LAST, SEPARATE, BARE = (
    "three layers",
    "the earliest",
    "the last",
    "three calls",
    "bare forward",
)


def attributed(net: Network, layer: str | Sequence[str]) -> Call:
    grad_cam = BatchGradCam(net.model, layer if isinstance(layer, str) else list(layer))
    return lambda: grad_cam.attribute(net.images, target=net.labels)


def main() -> None:
    made = parser(__doc__, rounds=20, seconds=40)
    made.add_argument("--batch", type=int, default=16)
    options = start(made)
    setups = SETUPS
    if options.quick:
        options.batch, setups = 2, {"resnet18": SETUPS["resnet18"]}
    report = Report("layers", options, "The reach is set against the earliest of the three layers alone.")
    for name, layers in setups.items():
        net = network(name, options.batch, options)
        single = [attributed(net, layer) for layer in layers]
        cases: dict[str, Call] = {
            BARE: net.bare_forward,
            THREE: attributed(net, layers),
            EARLIEST: single[0],
            LAST: single[-1],
            SEPARATE: lambda single=single: [call() for call in single],
        }
        times = interleaved(cases, options)
        case = f"{name}, {', '.join(layers)}, batch {options.batch}"
        report.add_case(case, times=times, model=name, layers=layers, batch=options.batch)
        for other, reach in ((EARLIEST, REACH), (LAST, None), (SEPARATE, None), (BARE, None)):
            report.add_figure(case, f"{THREE} ÷ {other}", times.ratio(THREE, other), reach=reach)
    report.finish()


if __name__ == "__main__":
    main()
