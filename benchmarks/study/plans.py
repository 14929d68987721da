"""Which runs the study has, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from .arms import PLAIN
from .choosing import NotYetError, choose_weight, passes
from .networks import NETWORKS
from .settings import Settings

#: Seeds of the choices, and those of the reported runs: no run that is reported had a part in a choice.
CHOICE_SEED = 100
SEEDS = (0, 1, 2)
MORE_SEEDS = (0, 1, 2, 3, 4)
CLEAN = ("mnist", "fashion-mnist")
DECOYED = ("decoy-mnist", "decoy-fashion-mnist")
#: Reported with fewer arms: these, and the upper bound.
FURTHER = ("decoy-cdep-mnist", "decoy-cdep-fashion-mnist", "decoy-fixed-mnist", "color-mnist")
FURTHER_ARMS = (PLAIN, "recipe")
UPPER_BOUND = "foreground@masks"
#: The same, told the object's own pixels, also where there is a shortcut beside it; with that one's weight, which was chosen
#: without a shortcut, where the two are the same.
OBJECTS = "foreground@objects"
_TRAIN_SIZE = 20_000

#: The arms of the full grid, without their weights, and the weights to choose from. The last three are told masks.
FAMILIES: dict[str, tuple[float, ...]] = {
    **{f"prototype-{distance}": (0.1, 0.3, 1, 10) for distance in ("l1", "l2", "ssim")},
    **{f"batch_cam-{distance}": (0.1, 0.3, 1, 10) for distance in ("l1", "l2", "ssim")},
    "prototype_contrastive": (0.03, 0.1, 0.3, 1),
    **{f"image-{distance}": (0.1, 0.3, 1, 10) for distance in ("l1", "l2", "ssim")},
    "foreground": (0.03, 0.1, 0.3, 1),
    "foreground@masks": (0.03, 0.1, 0.3, 1),
    "rrr_cam": (0.003, 0.01, 0.03, 0.1),
    "energy": (0.1, 0.3, 1, 10),
}
#: What is shipped; found by the search, fixed before any test set with a shortcut was opened. See docs/evidence/protocol.md.
RECIPE = "foreground:0.1+prototype-ssim@mean:1~1"
#: The recipe's terms, each alone, and with class medians, which a shortcut in a random corner is not in.
PARTS = {"shape alone": "prototype-ssim@mean:1~1", "foreground alone": "foreground:0.1"}
WITH_MEDIANS = {"with medians": "foreground:0.1+prototype-ssim@median:1~1"}
#: Candidates of the search: first all with one development shortcut, then those that are worth it everywhere.
FIRST: tuple[str, ...] = (
    "foreground:0.1",
    "foreground:0.3",
    "foreground:1",
    "prototype-ssim@median:1",
    "prototype-l1@median:1",
    "prototype-ssim@median/hires_cam:1",
    "foreground:0.1+prototype-ssim@median:1",
    "foreground:0.3+prototype-ssim@median:1",
    "foreground:0.3+prototype-l1@median:1",
    "foreground:0.3+prototype-cosine@median:1",
    "foreground:0.3+batch_cam-ssim@median:1",
    "foreground:0.3+prototype_contrastive@median:0.3",
    "foreground:0.3+prototype-ssim@foreground:1",
)
SECOND: tuple[str, ...] = (
    "foreground:0.1",
    "foreground:0.1+prototype-ssim@median:1",
    "foreground:0.3+prototype-cosine@median:1",
    "foreground:0.1+prototype-ssim@median:3",
    "foreground:0.3+prototype-ssim@median:1",
    "foreground:0.3+batch_cam-ssim@median:1",
    "foreground:0.1+prototype-ssim@median:1~1",
)
#: As Fashion-MNIST loses accuracy to the shape, less of it, or later.
THIRD: tuple[str, ...] = (
    "foreground:0.1+prototype-ssim@median:0.3",
    "foreground:0.3+prototype-ssim@median:0.3",
    "foreground:0.3+prototype-ssim@median:1~1",
)
#: One thing changed at a time in what the third round had found best: the class's own running mean cam as prototype, λ by the
#: gradients, strict, another normalisation, another distance; and another layer, the first ReLU (28×28).
VARIED_FROM = "foreground:0.1+prototype-ssim@median:1~1"
VARIATIONS: tuple[str, ...] = (
    "foreground:0.1+prototype-ssim@running:1~1",
    "foreground:auto+prototype-ssim@median:auto",
    "foreground:0.1+prototype-ssim@median!strict:1~1",
    "foreground:0.1+prototype-ssim@median!minmax:1~1",
    "foreground:0.1+prototype-l1@median:1~1",
)
VARIED = ("development-mnist", "fashion-mnist")
OTHER_LAYER = "features.1"
#: As the raw class means did no worse with the development shortcut than the medians.
FOURTH: tuple[str, ...] = (
    "foreground:0.1+prototype-ssim@mean:1~1",
    "foreground:0.1+prototype-ssim@erased:1~1",
)
CANDIDATES = tuple(dict.fromkeys((*FIRST, *SECOND, *THIRD, *FOURTH)))
SEARCHED = ("development-mnist", "development-fashion-mnist", *CLEAN)


def of_choice(data: str, arm: str) -> Settings:
    """A validation run, from which weights and recipe are chosen."""
    return Settings(data, "simple_cnn", arm, CHOICE_SEED, split="validation", train_size=_TRAIN_SIZE)


def search(folder: Path) -> Iterator[Settings]:
    """Candidates for the recipe, on validation images without a shortcut, and with one that is not reported."""
    for data in SEARCHED[1:]:
        yield from (of_choice(data, arm) for arm in (PLAIN, *SECOND, *THIRD, *FOURTH))
    yield from (of_choice(SEARCHED[0], arm) for arm in (PLAIN, *CANDIDATES))
    for data in VARIED:
        yield from (of_choice(data, arm) for arm in VARIATIONS)
        yield replace(of_choice(data, VARIED_FROM), layer=OTHER_LAYER)


def weights(folder: Path) -> Iterator[Settings]:
    """Each arm with its largest weight, then those that lose accuracy with the next, and so on."""
    runs = [of_choice(data, PLAIN) for data in CLEAN]
    yield from runs
    for rank in range(max(map(len, FAMILIES.values()))):
        for family, choices in FAMILIES.items():
            ordered = sorted(choices, reverse=True)
            if rank < len(ordered) and not _decided(family, ordered[:rank], runs, folder):
                yield from (replace(each, arm=f"{family}:{ordered[rank]:g}") for each in runs)


def _decided(family: str, tried: Sequence[float], runs: Sequence[Settings], folder: Path) -> bool:
    for weight in tried:
        try:
            if passes(f"{family}:{weight:g}", runs, folder):
                return True
        except NotYetError:
            return False
    return False


#: The arms whose weights the search has fixed.
FIXED = {PLAIN: PLAIN, "recipe": RECIPE, **PARTS, **WITH_MEDIANS}


def chosen_arms(folder: Path) -> dict[str, str]:
    """Name -> arm as text, of the grid: cross-entropy, the recipe and its halves, every family with its weight.

    Raises:
        NotYetError: weights are not chosen yet.
    """
    runs = [of_choice(data, PLAIN) for data in CLEAN]
    chosen = {
        family: f"{family}:{choose_weight(family, choices, runs, folder):g}"
        for family, choices in FAMILIES.items()
    }
    objects = {OBJECTS: chosen[UPPER_BOUND].replace(UPPER_BOUND, OBJECTS)} if UPPER_BOUND in chosen else {}
    return FIXED | chosen | objects


def grid(folder: Path) -> Iterator[Settings]:
    """SimpleCNN: every arm, every data set; those first that say the most.

    Raises:
        NotYetError: weights are not chosen yet, when the arms that need none have come.
    """
    yield from _shown(FIXED)
    yield from _part({name: FIXED[name] for name in FURTHER_ARMS}.items(), FURTHER, SEEDS, 0)
    arms = chosen_arms(folder)
    upper = {UPPER_BOUND: arms[UPPER_BOUND]}
    yield from _shown(upper)
    yield from _part(upper.items(), FURTHER, SEEDS, 0)
    objects = {OBJECTS: arms[OBJECTS]}
    yield from _part(objects.items(), DECOYED[:1], MORE_SEEDS, 200)
    yield from _part(objects.items(), DECOYED[1:], SEEDS, 200)
    yield from _part(objects.items(), (name for name in FURTHER if name.startswith("decoy")), SEEDS, 0)
    yield from _part(arms.items() - (FIXED | upper | objects).items(), (*CLEAN, *DECOYED), SEEDS, 200)


def _shown(arms: dict[str, str]) -> Iterator[Settings]:
    """Arms that are shown with more seeds on Decoy-MNIST."""
    yield from _part(arms.items(), DECOYED[:1], MORE_SEEDS, 200)
    yield from _part(arms.items(), (*CLEAN, *DECOYED[1:]), SEEDS, 200)


def _part(
    arms: Iterable[tuple[str, str]], sets: Iterable[str], seeds: Sequence[int], faithfulness: int
) -> Iterator[Settings]:
    sets = list(sets)
    for seed in seeds:
        for data in sets:
            for _, arm in sorted(arms):
                yield Settings(data, "simple_cnn", arm, seed, faithfulness=faithfulness)


def large(folder: Path) -> Iterator[Settings]:
    """The larger networks: four arms on two data sets."""
    arms = chosen_arms(folder)
    for network in ("resnet18", "convnextv2_tiny"):
        for seed in SEEDS:
            for data in ("mnist", "decoy-mnist"):
                for name in (PLAIN, "batch_cam-l1", "recipe", UPPER_BOUND):
                    yield Settings(
                        data, network, arms[name], seed, faithfulness=200, epochs=NETWORKS[network].epochs
                    )


def reduced(folder: Path) -> Iterator[Settings]:
    """ResNet-18 with what two CPU cores can do in an hour: a twelfth of the training images, a fifth of the test images."""
    arms = chosen_arms(folder)
    for seed in SEEDS:
        for name in (PLAIN, "recipe", UPPER_BOUND):
            yield Settings(
                "decoy-mnist", "resnet18", arms[name], seed, train_size=5000, test_size=2000, batch_size=64
            )


PLANS: dict[str, Callable[[Path], Iterator[Settings]]] = {
    "search": search, "weights": weights, "grid": grid, "large": large, "reduced": reduced,
}  # fmt: skip


def known(plan: str, folder: Path) -> tuple[list[Settings], str | None]:
    """The runs of a plan, as far as they can be told, and which run hinders telling the rest."""
    runs: list[Settings] = []
    try:
        for settings in PLANS[plan](folder):
            runs.append(settings)  # noqa: PERF402  what came before an error counts
    except NotYetError as missing:
        return runs, str(missing)
    return runs, None


def known_arms(folder: Path) -> dict[str, str]:
    """:func:`chosen_arms`; before the weights are chosen, the arms that need none."""
    try:
        return chosen_arms(folder)
    except NotYetError:
        return FIXED
