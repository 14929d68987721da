"""Look at model, layer and batch before explaining or training: what will not work, and what will not mean much."""

from __future__ import annotations

import copy
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from ..functional import CamMethod, dead_cams
from ..functional.losses.base import MIN_MAP_SIZE
from . import _captum
from .batch_grad_cam import BatchGradCam
from .compiled import compiled_modules, eager_stance, original
from .graph import between, node_of, walk
from .layers import module_names
from .observer import mixes_samples, mixing_remedy
from .output import Picker, pick_output
from .reshape import Reshape
from .second_order import second_order_problem
from .suggestions import LayerSuggestions, Layout, shortest_side, suggest_from
from .targets import Target, select_target
from .trace import Call, Trace, traced

Topic = Literal[
    "attribution",
    "batch_norm",
    "checkpoint",
    "class_token",
    "compiled",
    "dead_cams",
    "disconnected",
    "layout",
    "mixing",
    "not_finite",
    "repeated",
    "second_order",
    "small_maps",
    "softmax",
    "target",
    "unreached",
    "zero_gradient",
]
Severity = Literal["error", "warning", "note"]
_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}
_TEXTS: dict[Topic, tuple[Severity, str]] = {
    "attribution": ("error", "{error}"),
    "batch_norm": (
        "warning",
        "{norms}: BatchNorm with batch statistics after the layer mixes the samples, so each map depends on the other images; "
        "{remedy}",
    ),
    "checkpoint": (
        "error",
        "reentrant checkpointing after or around the layer lets no gradient be taken at a layer; pass use_reentrant=False to "
        "torch.utils.checkpoint.checkpoint",
    ),
    "class_token": (
        "error",
        "the scores depend on the class token alone, not on any of the layer's places, so every map is zero; {instead}",
    ),
    "compiled": (
        "warning",
        "{parts}, around or after the layer, is compiled: attribute() runs it uncompiled; in training it runs no hooks and has "
        "no second derivative: use the original module, call torch.compiler.set_stance('force_eager'), or split the model "
        "(split_model)",
    ),
    "dead_cams": (
        "warning",
        "{share:.0%} of the maps have no positive value: nothing here is evidence for the target; look at the signed map, "
        "another layer, or another target",
    ),
    "disconnected": ("error", "the scores do not depend on what the layer returns; {instead}"),
    "layout": (
        "error",
        "the layer returns {shape}, which is not (N, C, *spatial); pass reshape='auto' to BatchGradCam, for maps of {size}",
    ),
    "mixing": (
        "warning",
        "the score of an image depends on the activations of the others in its batch, and so does its map; explain single "
        "images, or a later layer",
    ),
    "not_finite": (
        "error",
        "the {what} are not finite; look for NaN in inputs and weights, and compute in float32 or float64",
    ),
    "repeated": (
        "warning",
        "the layer runs {runs} times in one forward: attribute() explains its last run, and a regularizer raises; give each run "
        "a module of its own, or {instead}",
    ),
    "second_order": (
        "warning",
        "an operator after the layer has no second derivative ({problem}). Plain maps do not need one; differentiable maps and "
        "losses on maps do: {choice} replace the operator",
    ),
    "small_maps": ("warning", "maps of {size}, under {least}, say next to nothing; {remedy}"),
    "softmax": (
        "warning",
        "the scores look like a softmax: none is negative, and they sum to 1. Its gradient nearly vanishes for certain "
        "predictions, and mixes the classes; explain the scores before the softmax",
    ),
    "target": ("error", "{error}"),
    "unreached": ("error", "the layer does not run in this forward; choose one that does{names}"),
    "zero_gradient": (
        "error",
        "the gradient of the scores is zero everywhere, so every map is zero; are the weights of the head zero, or does a ReLU "
        "cut off everything after the layer?",
    ),
}
# Texts for a topic's milder or more serious case.
_UNCERTAIN_LAYOUT = (
    "the layer returns {shape} for inputs {inputs}, which is read as (N, C, *spatial); pass a function as reshape= if it is "
    "something else, or {instead}"
)
_CHECKPOINTED_ATTENTION = (
    "attention in a checkpointed part after the layer: its recomputation in the backward has to find the same backend as the "
    "forward did; for differentiable maps and losses put the whole training step inside "
    "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
)


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing."""

    topic: Topic
    severity: Severity  #: error: no map, or a meaningless one; warning: read before use; note: good to know
    message: str  #: what it is, and what to do
    layer: str | None = None


@dataclass(frozen=True)
class LayerFigures:
    """The figures of one layer."""

    name: str
    runs: int  #: in one forward
    shape: (
        tuple[int, ...] | None
    )  #: of what it returns; None if that is several tensors, or if it does not run
    map_size: tuple[int, ...] | None = None  #: (h, w); None if there is no map
    dead_fraction: float | None = (
        None  #: share of the batch's maps without a positive value; None if there is no map
    )

    def __str__(self) -> str:
        if self.map_size is None or self.dead_fraction is None:
            return f"{self.name}: no map"
        size = " x ".join(map(str, self.map_size)) or "no places"
        return f"{self.name}: map {size}, {self.dead_fraction:.0%} of the maps dead"


class CheckReport:
    """What :func:`~batchcam_captum.check` found; ``print`` shows it.

    Args:
        findings: of all layers.
        layers: the figures of each layer.
        samples: how many the batch had.
    """

    def __init__(
        self, findings: Iterable[Finding], layers: Iterable[LayerFigures], samples: int | None = None
    ) -> None:
        self.findings = tuple(sorted(dict.fromkeys(findings), key=lambda finding: _ORDER[finding.severity]))
        self.layers = tuple(layers)
        self.samples = samples

    @property
    def ok(self) -> bool:
        """Return True if no finding is an error."""
        return all(finding.severity != "error" for finding in self.findings)

    @property
    def map_size(self) -> tuple[int, ...] | None:
        """Return (h, w) of the first layer's maps; None if there are none."""
        return self.layers[0].map_size

    @property
    def dead_fraction(self) -> float | None:
        """Return the share of the first layer's maps that have no positive value; None if there are none."""
        return self.layers[0].dead_fraction

    def about(self, topic: Topic) -> list[Finding]:
        """Return the findings on one topic.

        Args:
            topic: one of those of :class:`Finding`.
        """
        return [finding for finding in self.findings if finding.topic == topic]

    def __str__(self) -> str:
        severities = [finding.severity for finding in self.findings]
        counts = [
            f"{severities.count(each)} {each}{'s' if severities.count(each) > 1 else ''}"
            for each in _ORDER
            if each in severities
        ]
        lines = [f"{'ok' if self.ok else 'not ok'}: {', '.join(counts) or 'nothing to remark'}"]
        lines += [f"  {figures}" for figures in self.layers]
        for finding in self.findings:
            place = f"{finding.layer}: " if finding.layer and len(self.layers) > 1 else ""
            text = f"{finding.severity}, {finding.topic.replace('_', ' ')}: {place}{finding.message}"
            lines.append(textwrap.fill(text, 100, subsequent_indent="    ", break_on_hyphens=False))
        return "\n".join(lines)

    __repr__ = __str__


def check(
    model: BatchGradCam | Callable[..., Any],
    layer: Any = None,
    batch: Any = None,
    target: Target = None,
    *,
    additional_forward_args: object = None,
    method: str | CamMethod | None = None,
    reshape: Reshape = None,
    output: Picker = None,
) -> CheckReport:
    """Look for what will not work, or will not mean much, before explaining or training: ``check(model, layer, batch)``.

    Or ``check(grad_cam, batch)``, with a :class:`~batchcam_captum.BatchGradCam` and its options. Runs the model a few times,
    forward and backward, and leaves everything as it was: modes, buffers, gradients, hooks and random state. It reports
    compiled code and reentrant checkpointing; operators without a second derivative, which differentiable maps and losses need,
    and the nearest later layer that works; BatchNorm that mixes samples; layers that run twice, or never, or that the scores do
    not depend on; maps that are too small, dead, or not finite; softmaxed scores.

    Args:
        model: the model, in the mode in which it will be used.
        layer: the layer to explain, its name, or a list of either.
        batch: inputs of some samples, without labels; a tuple if the model takes several.
        target: which score is explained, as in :meth:`BatchGradCam.attribute`; by default each sample's highest.
        additional_forward_args: further arguments of the model.
        method: how activations and gradients become a map, as in :class:`~batchcam_captum.BatchGradCam`.
        reshape: from what the layer returns to (N, C, *spatial), as in :class:`~batchcam_captum.BatchGradCam`.
        output: which part of the model's output holds the scores, as in :class:`~batchcam_captum.BatchGradCam`.

    Returns:
        The findings, and the maps' size and share of dead ones; ``report.ok`` is False if there is an error among them.

    Raises:
        TypeError: an argument of a wrong type; options beside a :class:`~batchcam_captum.BatchGradCam`, which has its own.
        ValueError: the model has no layer of this name, or the batch has no samples.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from batchcam_captum import check
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Flatten(), nn.Linear(8 * 9, 10), nn.Softmax(1))
        >>> report = check(model, "0", torch.rand(4, 3, 8, 8))
        >>> report.ok, report.map_size, len(report.about("small_maps")), len(report.about("softmax"))
        (True, (3, 3), 1, 1)
    """
    if isinstance(model, BatchGradCam):
        options = {"method": method, "reshape": reshape, "output": output}
        given = [name for name, value in options.items() if value is not None]
        if given:
            raise TypeError(
                f"{given[0]}: expected none beside a {type(model).__name__}, which has its own, got {options[given[0]]!r}; pass "
                f"model and layer, or leave it out"
            )
        grad_cam = copy.copy(model)
        if layer is not None:  # check(grad_cam, batch, target)
            batch, target = layer, batch if target is None else target
    else:
        grad_cam = BatchGradCam(model, layer, method=method or "grad_cam", reshape=reshape, output=output)
    if not isinstance(batch, Tensor | tuple):
        raise TypeError(f"batch: expected a tensor or a tuple of tensors, got {type(batch).__name__}")
    inputs = _captum.format_tensor_into_tuples(batch)
    if inputs and not len(inputs[0]):
        raise ValueError(f"batch: expected one sample or more, got {tuple(inputs[0].shape)}")
    arguments = _captum.format_additional_forward_args(additional_forward_args) or ()
    compiled = compiled_modules(grad_cam.forward_func)
    grad_cam.forward_func = original(grad_cam.forward_func)
    with eager_stance():
        return _report(grad_cam, inputs, arguments, target, compiled)


def _report(
    grad_cam: BatchGradCam,
    inputs: tuple[Any, ...],
    arguments: tuple[Any, ...],
    target: Target,
    compiled: dict[str, nn.Module],
) -> CheckReport:
    """Examine one traced forward, and then the maps of ``attribute``, if it can work."""
    findings: list[Finding] = []
    with traced(grad_cam.forward_func, inputs, arguments, math_from=grad_cam.layers) as trace:
        figures = [_figures(grad_cam, layer, trace) for layer in grad_cam.layers]
        try:
            scores = pick_output(trace.output, grad_cam.output)
            if target is None and scores.dim() == 2 and scores.shape[1] > 1:
                target = scores.detach().argmax(1)
            selected = select_target(scores, target)
        except (TypeError, ValueError) as error:
            finding = _finding("target", error=str(error).removeprefix("target: "))
            return CheckReport([finding], figures, len(inputs[0]))
        findings += _of_scores(scores.detach())
        suggestions = suggest_from(trace, grad_cam.forward_func, scores, grad_cam.output)
        for layer, figure in zip(grad_cam.layers, figures, strict=True):
            view = _View(grad_cam, layer, figure.name, trace, scores, selected, suggestions)
            try:
                findings += [*_of_forward(view, compiled), *_of_gradients(view)]
            except CheckpointError:
                findings.append(Finding("checkpoint", "warning", _CHECKPOINTED_ATTENTION, view.name))
            if view.layout is not None and grad_cam.reshape is None:
                grad_cam.reshape = view.layout.reshape
    if _no_error(findings, "layout", "class_token", "zero_gradient"):
        is_meant = _no_error(findings)
        try:
            with warnings.catch_warnings(action="ignore"):  # findings tell the same
                cams = grad_cam.attribute(inputs, target, arguments or None)
        except (RuntimeError, TypeError, ValueError) as error:
            findings.append(_finding("attribution", error=error))
            cams = []
        for position, cam in enumerate(cams if isinstance(cams, list) else [cams]):
            if isinstance(cam, Tensor):  # a layer with several tensors has a map of each
                dead = dead_cams(cam).float().mean().item()
                figures[position] = replace(
                    figures[position], map_size=tuple(cam.shape[2:]), dead_fraction=dead
                )
                findings += _of_maps(cam, figures[position], suggestions) if is_meant else ()
    return CheckReport(findings, figures, len(inputs[0]))


def _finding(topic: Topic, layer: str | None = None, **values: object) -> Finding:
    severity, text = _TEXTS[topic]
    return Finding(topic, severity, text.format(**values), layer)


def _no_error(findings: Iterable[Finding], *but: str) -> bool:
    return all(found.severity != "error" or found.topic in but for found in findings)


def _figures(grad_cam: BatchGradCam, layer: nn.Module, trace: Trace) -> LayerFigures:
    runs = trace.runs(layer)
    name = module_names(grad_cam.forward_func).get(layer) or type(layer).__name__
    return LayerFigures(runs[-1].name if runs else name, len(runs), runs[-1].shape if runs else None)


def _instead(suggestions: LayerSuggestions, name: str) -> str:
    """Return which layer to choose instead of this one."""
    best = suggestions.recommended
    if best is None or best.name == name:
        return "choose another layer"
    reshape = f' with reshape="{best.reshape}"' if best.reshape else ""
    return f"choose {best.name!r} ({_times(best.map_size)}){reshape}"


def _times(size: Iterable[int]) -> str:
    return " x ".join(map(str, size))


def _listed(names: Iterable[str]) -> str:
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:3]) + (f" and {len(unique) - 3} more" if len(unique) > 3 else "")


@dataclass(frozen=True)
class _View:
    """A layer in a traced forward whose graph is still there."""

    grad_cam: BatchGradCam
    layer: nn.Module
    name: str
    trace: Trace
    scores: Tensor
    selected: Tensor  #: one score per sample
    suggestions: LayerSuggestions

    @property
    def run(self) -> Call | None:
        """Return the last run of the layer."""
        runs = self.trace.runs(self.layer)
        return runs[-1] if runs else None

    @property
    def layout(self) -> Layout | None:
        return Layout.of(self.run, self.grad_cam.forward_func, self.trace) if self.run else None

    @property
    def is_checkpointed(self) -> bool:
        """Return True if reentrant checkpointing is between layer and scores; anywhere, if the layer has no graph."""
        root = node_of(self.selected)
        ends = {edge.node for edge in self.run.edges} if self.run else set()
        nodes = between(root, ends) - ends if ends else walk([root])
        return any(node.name() == "CheckpointFunctionBackward" for node in nodes)


def _of_scores(scores: Tensor) -> Iterator[Finding]:
    if not torch.isfinite(scores).all():
        yield _finding("not_finite", what="scores")
    elif scores.dim() == 2 and scores.shape[1] > 1 and (scores >= 0).all():
        sums = scores.float().sum(1)
        if torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            yield _finding("softmax")


def _of_forward(view: _View, compiled: dict[str, nn.Module]) -> Iterator[Finding]:
    """Yield what can be told without a gradient."""
    run, trace = view.run, view.trace
    instead = _instead(view.suggestions, view.name)
    if run is None:
        names = ", ".join(repr(row.name) for row in view.suggestions[:3])
        yield _finding("unreached", view.name, names=f", such as {names}" if names else "")
        return
    runs = len(trace.runs(view.layer))
    if runs > 1:
        yield _finding("repeated", view.name, runs=runs, instead=instead)
    later = {call.module for call in (*trace.after(run), *trace.around(run))}
    parts = [name or "the model" for name, part in compiled.items() if later & {part, original(part)}]
    if parts:
        yield _finding("compiled", view.name, parts=_listed(parts))
    if view.is_checkpointed:
        yield _finding("checkpoint", view.name)
    elif run.edges and run.shape is not None and view.grad_cam.reshape is None:
        if view.layout is None and prod(run.shape[2:]) > 1:
            given = " and ".join(str(tuple(each.shape)) for each in trace.spatial_inputs)
            text = _UNCERTAIN_LAYOUT.format(shape=run.shape, inputs=given, instead=instead)
            yield Finding("layout", "warning", text, view.name)
        elif view.layout is not None and view.layout.reshape:
            yield _finding("layout", view.name, shape=run.shape, size=_times(view.layout.map_size))


def _of_gradients(view: _View) -> Iterator[Finding]:
    """Yield what gradients at the layer, of first and second order, tell."""
    if view.run is None or not view.run.edges or view.is_checkpointed:
        return  # a part without a graph may be on purpose; attribute() tells
    gradients = _gradients(view.selected, view.run)
    instead = _instead(view.suggestions, view.name)
    if not gradients:
        yield _finding("disconnected", view.name, instead=instead)
    elif not any(gradient.any() for gradient in gradients):
        yield _finding("zero_gradient", view.name)
    elif len(gradients) == 1 and view.layout is not None and not view.layout.rearrange(gradients[0]).any():
        yield _finding("class_token", view.name, instead=instead)
    else:
        yield from _of_other_samples(view, view.run)
    yield from _of_second_order(view, view.run)


def _gradients(scores: Tensor, run: Call, *, create_graph: bool = False) -> list[Tensor]:
    """Return the gradients with respect to what a run returned; none if the scores do not depend on it."""
    found = torch.autograd.grad(
        scores.sum(), run.edges, create_graph=create_graph, retain_graph=True, allow_unused=True
    )
    return [gradient for gradient in found if gradient is not None]


def _of_other_samples(view: _View, run: Call) -> Iterator[Finding]:
    """Find out whether the first sample's score depends on the activations of the others."""
    samples = len(view.selected)
    others = [each[1:] for each in _gradients(view.selected[:1], run) if each.shape[:1] == (samples,)]
    if not any(bool(each.any()) for each in others):
        return
    norms = [call for call in view.trace.after(run) if mixes_samples(call.module)]
    if not norms:
        yield _finding("mixing", view.name)
        return
    # A norm itself may be on one branch of a block, whose map misses the other.
    later = [call for call in view.trace.candidates(view.scores) if call.ended >= norms[-1].ended]
    remedy = mixing_remedy(repr(later[0].name) if later else None)
    yield _finding("batch_norm", view.name, norms=_listed(call.name for call in norms), remedy=remedy)


def _of_second_order(view: _View, run: Call) -> Iterator[Finding]:
    """Differentiate the gradients once more; if that fails, look for the nearest later layer at which it works."""
    problem = second_order_problem(_gradients(view.selected, run, create_graph=True), run.edges)
    if problem is None:
        return
    ends = {edge.node for edge in run.edges}
    later = (
        call.name
        for call in view.trace.candidates(view.scores)
        if call.ended > run.ended
        and between(call.edges[0].node, ends)  # not on the branch of another input
        and second_order_problem(_gradients(view.selected, call, create_graph=True), call.edges) is None
    )
    name = next(later, None)
    choice = f"choose {name!r}, the nearest later layer that works, or" if name else "no later layer works:"
    yield _finding("second_order", view.name, problem=problem, choice=choice)


def _of_maps(cams: Tensor, figures: LayerFigures, suggestions: LayerSuggestions) -> Iterator[Finding]:
    name, size, dead = figures.name, figures.map_size or (), figures.dead_fraction or 0.0
    if not torch.isfinite(cams).all():
        yield _finding("not_finite", name, what="maps")
        return
    best = suggestions.recommended
    if best is not None and best.name != name and shortest_side(best.map_size) >= MIN_MAP_SIZE:
        remedy = f"{_instead(suggestions, name)}, or give the model larger inputs"
    else:
        remedy = "give the model larger inputs, or a stem with a smaller stride"
    if prod(size) < 2:
        text = f"the maps have a single place, so nothing is located; {remedy}"
        yield Finding("small_maps", "error", text, name)
    elif shortest_side(size) < MIN_MAP_SIZE:
        least = _times([MIN_MAP_SIZE] * min(len(size), 2))
        yield _finding("small_maps", name, size=_times(size), least=least, remedy=remedy)
    if dead > 0:
        found = _finding("dead_cams", name, share=dead)
        yield found if dead >= 0.5 else replace(found, severity="note")
