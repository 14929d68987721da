"""A layer's activations, from a forward that somebody else runs."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from torch import Tensor, nn

from .observer import ForwardObserver


class LayerCapture:
    """Remember the activations of a layer from the one forward inside a ``with`` block.

    The activations keep their graph, so a gradient with respect to them can be taken as long as nobody has called
    ``backward()`` on the scores. The hook is gone after the block, also when it raises. In-place operations after the layer do
    no harm. Activations without a graph (of a frozen trunk) are marked with ``requires_grad_()`` until :meth:`release`; if the
    layer is an Identity on the images, these are marked. Forwards of :meth:`BatchGradCam.attribute` inside the block, and those
    of other threads, are ignored.

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
        self.layer, self.at_input = layer, at_input
        self._observer = ForwardObserver([layer], at_input=at_input)

    def __enter__(self) -> Self:
        if self._observer.is_open:
            raise RuntimeError(
                "LayerCapture: expected a capture that is not open, got a nested one; use one capture for each block"
            )
        self._observer.release()
        self._observer = ForwardObserver([self.layer], at_input=self.at_input)
        self._observer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._observer.__exit__(kind, error, trace)

    @property
    def activations(self) -> Tensor | tuple[Tensor, ...]:
        """Return the layer's output, (N, C, *spatial), graph attached; a tuple if the layer returns several tensors.

        Raises:
            RuntimeError: the layer has not run inside the block, or it ran on several devices.
        """
        (by_device,) = self._observer.activations or [{}]
        name = type(self.layer).__name__
        if not by_device:
            raise RuntimeError(
                f"{name}: expected one forward through this layer inside the with block, got none; call the model inside `with`, "
                f"and check that the layer is part of it (a compiled model runs no hooks)"
            )
        if len(by_device) > 1:
            raise RuntimeError(
                f"{name}: expected activations on one device, got {len(by_device)} devices; with DistributedDataParallel each "
                f"device has its own process"
            )
        (tensors,) = by_device.values()
        return tensors[0] if len(tensors) == 1 else tensors

    def release(self) -> None:
        """Forget the activations, so that their memory can be freed."""
        self._observer.release()
