"""A layer's activations, from a forward that somebody else runs."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from torch import Tensor, nn

from .recorder import LayerRecorder


class LayerCapture:
    """Remembers the activations of a layer from the one forward inside a ``with`` block.

    The activations keep their graph, so a gradient with respect to them can be taken as long as nobody has called
    ``backward()`` on the scores. The hook is gone after the block, also when it raises. In-place operations after the layer
    do no harm. Activations without a graph (a frozen trunk) are marked with ``requires_grad_()`` until :meth:`release`, the
    images themselves where the layer is an Identity on them. Forwards of :meth:`BatchGradCam.attribute` inside the block, and
    those of other threads, are not seen.

    Args:
        layer: the layer whose output is remembered.
        at_input: remember what the layer receives instead.

    Raises:
        TypeError: ``layer`` is no module.

    Example:
        >>> import torch
        >>> from batchcam_captum import LayerCapture
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(inplace=True), torch.nn.Flatten())
        >>> with LayerCapture(model[0]) as capture:
        ...     scores = model(torch.rand(2, 1, 8, 8))
        >>> capture.activations.shape
        torch.Size([2, 4, 6, 6])
    """

    def __init__(self, layer: nn.Module, *, at_input: bool = False) -> None:
        if not isinstance(layer, nn.Module):
            raise TypeError(f"layer: expected a torch.nn.Module, got {type(layer).__name__}")
        self._recorder = LayerRecorder(layer, at_input=at_input, once=True)

    def __enter__(self) -> Self:
        if self._recorder.attached:
            raise RuntimeError(
                "LayerCapture: expected a capture that is not open, got a nested one; use a capture of its own for each block"
            )
        self._recorder.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._recorder.detach()
        else:
            self._recorder.release()

    @property
    def activations(self) -> Tensor | tuple[Tensor, ...]:
        """What the layer returned, (N, C, *spatial), graph attached; a tuple where the layer returns several tensors.

        Raises:
            RuntimeError: the layer has not run inside the block, or it ran on several devices.
        """
        recorder = self._recorder
        if not recorder.tensors:
            raise RuntimeError(
                f"{type(recorder.layer).__name__}: expected one forward through this layer inside the with block, got none; "
                f"call the model inside `with`, and check that the layer is part of it (a compiled model runs no hooks)"
            )
        if len(recorder.tensors) > 1:
            raise RuntimeError(
                f"{type(recorder.layer).__name__}: expected activations on one device, got {len(recorder.tensors)} devices; "
                f"DistributedDataParallel gives each device a process of its own"
            )
        (tensors,) = recorder.tensors.values()
        return tensors[0] if recorder.is_single else tensors

    def release(self) -> None:
        """Forget the activations, so that their memory can be freed."""
        self._recorder.release()
