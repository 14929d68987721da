"""A look at model, layer and batch before anything is explained or trained: what will not work, or will not mean much."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from math import prod
from typing import Any, overload

import torch
from torch import Tensor, nn

from ..functional import CamMethod, dead_cams
from . import _captum
from .batch_grad_cam import BatchGradCam
from .compiled import compiled_modules, eager_stance, hidden_layers, ignore_own_hooks, original
from .layer_checks import Look, findings_of_layer, instead, second_order_findings
from .output import Picker, pick_output
from .places import LEAST_SIDE, Layout, least_side
from .report import CheckReport, Finding, LayerFigures
from .reshape import Reshape
from .suggestions import LayerSuggestions, suggest_from
from .targets import Target, select_target
from .trace import Trace, traced

_Batch = Tensor | tuple[Tensor, ...]


@overload
def check(
    model: BatchGradCam, layer: _Batch, batch: Target = None, *, additional_forward_args: object = None
) -> CheckReport: ...
@overload
def check(
    model: BatchGradCam, *, batch: _Batch, target: Target = None, additional_forward_args: object = None
) -> CheckReport: ...
@overload
def check(
    model: Callable[..., Any],
    layer: nn.Module | str | Sequence[nn.Module | str],
    batch: _Batch,
    target: Target = None,
    *,
    additional_forward_args: object = None,
    method: str | CamMethod = "grad_cam",
    reshape: Reshape = None,
    output: Picker = None,
) -> CheckReport: ...
def check(
    model: Any,
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
    forward and backward, and leaves everything as it was: modes, buffers, gradients, hooks and random state. What it finds it
    reports, and does not raise: compiled code and reentrant checkpointing; operators without a second derivative, which
    differentiable maps and losses need, and the nearest later layer that works; BatchNorm that mixes samples; layers that run
    twice, or never, or that the scores do not depend on; maps that are too small, dead, or not finite; softmaxed scores.

    Args:
        model: the model, in the mode in which it is going to be used.
        layer: the layer to be explained, its name, or a list of either.
        batch: inputs of some samples, without labels; a tuple where the model takes several.
        target: which score is explained, see :meth:`BatchGradCam.attribute`; by default each sample's highest.
        additional_forward_args: further arguments of the model.
        method: see :class:`~batchcam_captum.BatchGradCam`; None is its default.
        reshape: see :class:`~batchcam_captum.BatchGradCam`.
        output: see :class:`~batchcam_captum.BatchGradCam`.

    Returns:
        The findings, and the maps' size and share of dead ones; ``report.ok`` is false where there is an error among them.

    Raises:
        TypeError: an argument of a wrong kind; options beside a :class:`~batchcam_captum.BatchGradCam`, which has its own.
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
        grad_cam = copy.copy(model)
        options = {"method": method, "reshape": reshape, "output": output}
        given = [name for name, value in options.items() if value is not None]
        if given:
            raise TypeError(
                f"check: expected no {' and no '.join(given)} beside a {type(model).__name__}, which has its own, got "
                f"{', '.join(f'{name}={options[name]!r}' for name in given)}; pass model and layer, or leave it out"
            )
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
    return _Preflight(grad_cam, inputs, arguments, target).report()


class _Preflight:
    def __init__(
        self, grad_cam: BatchGradCam, inputs: tuple[Any, ...], arguments: tuple[Any, ...], target: Target
    ) -> None:
        self.grad_cam = grad_cam
        self.model = grad_cam.forward_func
        self.inputs = inputs
        self.arguments = arguments
        self.target = target
        self.findings: list[Finding] = []
        self.suggestions = LayerSuggestions(())
        self.scores: Tensor | None = None
        self.layouts: dict[nn.Module, Layout] = {}

    def report(self) -> CheckReport:
        hidden = hidden_layers(self.model, self.grad_cam.layers)
        if hidden is not None:
            self.findings.append(Finding("compiled", "error", hidden))
        parts = compiled_modules(self.model)
        self.model = self.grad_cam.forward_func = original(self.model)
        with eager_stance(), ExitStack() as stack:
            trace = stack.enter_context(traced(self.model, self.inputs, self.arguments))
            selected = self._selected(trace)
            if selected is not None:
                for layer in self.grad_cam.layers:
                    self._look(trace, layer, selected, {part.name for part in parts})
                if any(finding.topic == "attention" for finding in self.findings):
                    trace = stack.enter_context(
                        traced(self.model, self.inputs, self.arguments, math_from=self.grad_cam.layers)
                    )
                    selected = self._selected(trace)
                if selected is not None and self._no_errors():
                    for layer in self.grad_cam.layers:
                        self.findings += second_order_findings(trace, layer, selected, self.scores)
            figures = [
                LayerFigures(self._name(layer, trace), len(runs), runs[-1].shape if runs else None)
                for layer in self.grad_cam.layers
                for runs in [trace.runs(layer)]
            ]
            stack.close()
            figures = list(self._with_maps(figures))
        return CheckReport(self.findings, figures, len(self.inputs[0]))

    def _no_errors(self, *but: str) -> bool:
        return all(finding.severity != "error" or finding.topic in but for finding in self.findings)

    def _name(self, layer: nn.Module, trace: Trace) -> str:
        runs = trace.runs(layer)
        if runs:
            return runs[-1].name
        known = self.model.named_modules() if isinstance(self.model, nn.Module) else ()
        return next((name for name, module in known if module is layer), type(layer).__name__)

    def _selected(self, trace: Trace) -> Tensor | None:
        """One score a sample; by default the highest."""
        try:
            scores = pick_output(trace.output, self.grad_cam.output)
            if self.target is None and scores.dim() == 2 and scores.shape[1] > 1:
                self.target = scores.detach().argmax(1)
            selected = select_target(scores, self.target)
        except (TypeError, ValueError) as error:
            self._add("target", "error", str(error).removeprefix("target: "))
            return None
        self._look_at_scores(scores.detach())
        self.scores = scores
        self.suggestions = suggest_from(trace, self.model, scores, self.grad_cam.output)
        return selected

    def _add(self, topic: Any, severity: Any, message: str, layer: str | None = None) -> None:
        self.findings.append(Finding(topic, severity, message, layer))

    def _look_at_scores(self, scores: Tensor) -> None:
        if not torch.isfinite(scores).all():
            self._add(
                "not_finite", "error", "the scores are not finite; look for NaN in the inputs and weights"
            )
        elif scores.dim() == 2 and scores.shape[1] > 1 and (scores >= 0).all():
            sums = scores.float().sum(1)
            if torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
                self._add(
                    "softmax",
                    "warning",
                    "the scores look like a softmax: they are not negative, and sum to 1. Its gradient all but vanishes for sure "
                    "predictions, and mixes the classes; explain the scores before the softmax",
                )

    def _look(self, trace: Trace, layer: nn.Module, selected: Tensor, compiled: set[str]) -> None:
        runs, name = trace.runs(layer), self._name(layer, trace)
        if not runs:
            if self._no_errors():
                names = ", ".join(repr(row.name) for row in self.suggestions[:3])
                remedy = f"choose one that does, such as {names}" if names else "choose one that does"
                self._add("unreached", "error", f"the layer does not run in this forward; {remedy}", name)
            return
        if len(runs) > 1:
            self._add(
                "repeated",
                "warning",
                f"the layer runs {len(runs)} times in one forward: attribute() explains its last run, and a regularizer "
                f"raises; give each run a module of its own, or {instead(self.suggestions, name)}",
                name,
            )
        layout = Layout.of(runs[-1], self.model, trace)
        if layout is not None:
            self.layouts[layer] = layout
        reshaped = self.grad_cam.reshape is not None
        look = Look(trace, runs[-1], selected, layout, reshaped, self.suggestions)
        self.findings += findings_of_layer(look)
        later = [call.name for call in trace.after(runs[-1]) if call.name in compiled]
        if later:
            self._add(
                "compiled",
                "warning",
                f"{', '.join(later)} after the layer is compiled, and compiled code has no second derivative: attribute() runs "
                f"it as it is written for differentiable maps; in a training step with a loss on maps, do so yourself by "
                f'torch.compiler.set_stance("force_eager"), or use the original module',
                name,
            )

    def _with_maps(self, figures: list[LayerFigures]) -> Iterator[LayerFigures]:
        """The figures with what the maps say."""
        maps = self._maps() if self._no_errors("layout", "class_token", "zero_gradient", "softmax") else None
        for position, figure in enumerate(figures):
            cams = maps[position] if maps is not None else None
            if not isinstance(cams, Tensor):  # a layer with several tensors has a map of each
                yield figure
                continue
            size = tuple(cams.shape[2:])
            dead = dead_cams(cams).float().mean().item()
            if self._no_errors("softmax"):
                self._look_at_maps(cams, size, dead, figure.name)
            yield LayerFigures(figure.name, figure.runs, figure.shape, size, dead)

    def _maps(self) -> list[Any] | None:
        grad_cam = copy.copy(self.grad_cam)
        if grad_cam.reshape is None and any(layout.reshape for layout in self.layouts.values()):
            grad_cam.reshape = "auto"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ignore_own_hooks()
            try:
                cams = grad_cam.attribute(self.inputs, self.target, self.arguments or None)
            except (RuntimeError, TypeError, ValueError) as error:
                self._add("attribution", "error", str(error))
                return None
        for entry in caught:
            text = str(entry.message)
            if "the layer runs" not in text and "a BatchNorm with batch statistics" not in text:
                self._add("warning", "warning", text)
        return cams if isinstance(cams, list) else [cams]

    def _look_at_maps(self, cams: Tensor, size: tuple[int, ...], dead: float, name: str) -> None:
        if not torch.isfinite(cams).all():
            self._add("not_finite", "error", "the maps are not finite; compute in float32 or float64", name)
            return
        measure = " x ".join(map(str, size))
        least = " x ".join([str(LEAST_SIDE)] * min(max(len(size), 1), 2))
        best = self.suggestions.recommended
        other = (
            f"{instead(self.suggestions, name)}, or give the model larger inputs"
            if best is not None and best.name != name and least_side(best.map_size) >= LEAST_SIDE
            else "give the model larger inputs, or a stem with a smaller stride"
        )
        if prod(size) < 2:
            self._add(
                "small_maps",
                "error",
                f"the maps have a single place, so that nothing is located; {other}",
                name,
            )
        elif least_side(size) < LEAST_SIDE:
            self._add(
                "small_maps",
                "warning",
                f"maps of {measure}, under {least}, say next to nothing; {other}",
                name,
            )
        if dead > 0:
            few = dead < 0.5
            self._add(
                "dead_cams",
                "note" if few else "warning",
                f"{dead:.0%} of the maps have no positive value: nothing at this layer speaks for the target"
                + ("" if few else "; look at the signed map, another layer, or another target"),
                name,
            )
