"""pytorch-grad-cam, Captum, TorchCAM and this package behind one face, for comparing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..attribution import BatchGradCam
from ..attribution._captum import LayerGradCam
from ..attribution.layers import find_layer
from ..attribution.state import recordable
from ..environment import version_of
from ..functional import CAM_METHODS, CamMethod, get_method
from ..optional import load
from .as_maps import as_maps
from .peer_methods import grad_cam_elementwise, pytorch_grad_cam_method, torchcam_method
from .presets import to_captum, to_pytorch_grad_cam, to_torchcam
from .untouched import untouched

#: (images, one class an image) -> (N, 1, *spatial), detached, in the size and scale that the peer returns.
Call = Callable[[Tensor, list[int]], Tensor]
#: What brings a layer's output to (N, C, *spatial).
ReshapeCall = Callable[[Tensor], Tensor]


class PeerError(ValueError):
    """A library cannot do what is asked for: the case is not its own, or it raised. The message begins with its name."""


@dataclass(frozen=True)
class Peer:
    """One library: what it offers, how it is called, and what our maps look like in its manner."""

    name: str  #: as it calls itself
    distribution: str  #: its name on PyPI
    methods: tuple[str, ...]  #: the weightings that it has, by our names
    scale: Literal["unit", "raw"]  #: its maps are in [0, 1], or signed as they come

    def version(self) -> str | None:
        """The installed version; None where it is not installed."""
        return version_of(self.distribution)

    def cam_method(self, method: str) -> CamMethod:
        """Its weighting, its epsilons and quirks included, for ``BatchGradCam(…, method=…)``.

        Raises:
            ValueError: it has none of this name.
        """
        raise NotImplementedError

    def preset(self, cams: Tensor, size: Sequence[int]) -> Tensor:
        """What the library would have returned for our raw cams.

        Args:
            cams: (N, 1, *spatial), raw, computed with :meth:`cam_method`.
            size: of the images.

        Returns:
            (N, 1, …), in the size and scale of what a call returns.
        """
        raise NotImplementedError

    @contextmanager
    def opened(
        self, model: nn.Module, layer: str | nn.Module, method: str, *, reshape: ReshapeCall | None = None
    ) -> Iterator[Call]:
        """Prepare the library for a layer. Its hooks stay on the model until the context ends, as they do for its users.

        When the context ends the model is put back as it was, see :func:`untouched`. Until then it is as the library leaves it:
        pytorch-grad-cam puts it in eval mode, whatever it was in. So is the memory: between two calls TorchCAM keeps the layer's
        activations and gradients, pytorch-grad-cam also the graph of the whole model.

        Args:
            model: in any mode, frozen or not. Where a parameter is frozen, the images are asked for their gradient, as users of
                these libraries do, or there would be nothing to go back through.
            layer: a module or its name.
            method: one of :attr:`methods`.
            reshape: for layers that do not return (N, C, *spatial).

        Yields:
            ``call(images, targets)``: images as the model takes them, one class an image; the maps are (N, 1, *spatial), on the
            images' device or the CPU.

        Raises:
            PeerError: the library cannot do this; the call raises it, too.
            ModuleNotFoundError: the library is not installed.
            ValueError: the model has no such layer.
        """
        if method not in self.methods:
            raise PeerError(f"{self.name} cannot do {method!r}; it has {', '.join(map(repr, self.methods))}")
        module = find_layer(model, layer)
        if self.version() is None:
            raise ModuleNotFoundError(
                f"{self.name} is not installed; install batchcam-captum[compare]", name=self.distribution
            )
        with ExitStack() as stack:
            stack.enter_context(untouched(model))
            frozen = not all(parameter.requires_grad for parameter in model.parameters())
            with self._blamed():
                call = stack.enter_context(self._hooked(model, module, method, reshape))

            def checked(images: Tensor, targets: list[int]) -> Tensor:
                if len(targets) != len(images):
                    raise PeerError(
                        f"{self.name}: expected one target for each of {len(images)} images, got {len(targets)}"
                    )
                # A tensor of its own: the library may ask it for its gradient.
                with torch.inference_mode(False), torch.enable_grad(), self._blamed():
                    images = recordable(images).detach()
                    if frozen:
                        images = images.clone().requires_grad_()
                    maps = call(images, list(targets)).detach()
                if maps.shape[:1] != images.shape[:1]:
                    raise PeerError(f"{self.name} returned {len(maps)} maps for {len(images)} images")
                return maps

            yield checked

    def _hooked(
        self, model: nn.Module, layer: nn.Module, method: str, reshape: ReshapeCall | None
    ) -> AbstractContextManager[Call]:
        raise NotImplementedError

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Whatever the library raises names it. Memory that runs out is no matter of what it can do."""
        try:
            yield
        except (PeerError, torch.OutOfMemoryError, ModuleNotFoundError):
            raise
        except Exception as error:
            raise PeerError(f"{self.name} cannot do this: {type(error).__name__}: {error}") from error


class _PytorchGradCam(Peer):
    def cam_method(self, method: str) -> CamMethod:
        return pytorch_grad_cam_method(method)

    def preset(self, cams: Tensor, size: Sequence[int]) -> Tensor:
        return torch.from_numpy(to_pytorch_grad_cam(cams, size)).unsqueeze(1)

    @contextmanager
    def _hooked(
        self, model: nn.Module, layer: nn.Module, method: str, reshape: ReshapeCall | None
    ) -> Iterator[Call]:
        peer = load("pytorch_grad_cam", purpose="comparing with pytorch-grad-cam")
        targets_of = load("pytorch_grad_cam.utils.model_targets", purpose="comparing with pytorch-grad-cam")
        # Its destructor would complain if its constructor had not come to the end.
        if next(model.parameters(), None) is None:
            raise PeerError(
                f"{self.name} cannot do a model without parameters: it asks the first for its device"
            )
        cam = getattr(peer, _PYTORCH_GRAD_CAM_CLASSES[method])(model, [layer], reshape_transform=reshape)
        recorded = cam.activations_and_grads

        def call(images: Tensor, targets: list[int]) -> Tensor:
            maps = cam(images, [targets_of.ClassifierOutputTarget(target) for target in targets])
            if len(recorded.activations) != 1:
                raise PeerError(
                    f"{self.name} cannot do a layer that runs {len(recorded.activations)} times in a forward: it takes the first"
                )
            return torch.from_numpy(maps).unsqueeze(1)

        try:
            # Not its own context manager, which swallows every IndexError of the body.
            yield call
        finally:
            recorded.release()


class _TorchCam(Peer):
    def cam_method(self, method: str) -> CamMethod:
        return torchcam_method(method)

    def preset(self, cams: Tensor, size: Sequence[int]) -> Tensor:
        return to_torchcam(cams)[0].unsqueeze(1)

    @contextmanager
    def _hooked(
        self, model: nn.Module, layer: nn.Module, method: str, reshape: ReshapeCall | None
    ) -> Iterator[Call]:
        peer = load("torchcam.methods", purpose="comparing with TorchCAM")
        with getattr(peer, _TORCHCAM_CLASSES[method])(model, layer, reshape_transform=reshape) as extractor:

            def call(images: Tensor, targets: list[int]) -> Tensor:
                scores = model(images)
                maps: Tensor = extractor(targets, scores)[0]
                return maps.unsqueeze(1)

            yield call


class _Captum(Peer):
    def cam_method(self, method: str) -> CamMethod:
        if method not in self.methods:
            raise ValueError(f"method: expected 'grad_cam', the only one that Captum has, got {method!r}")
        return get_method(method)

    def preset(self, cams: Tensor, size: Sequence[int]) -> Tensor:
        return to_captum(cams)

    @contextmanager
    def _hooked(
        self, model: nn.Module, layer: nn.Module, method: str, reshape: ReshapeCall | None
    ) -> Iterator[Call]:
        grad_cam = LayerGradCam(model, layer)

        def call(images: Tensor, targets: list[int]) -> Tensor:
            maps = grad_cam.attribute(images, target=targets)
            if not isinstance(maps, Tensor):
                raise PeerError(
                    f"{self.name}: the layer returns {len(maps)} tensors; choose a layer with one"
                )
            return maps

        with as_maps(layer, reshape):
            yield call


class _Ours(Peer):
    def cam_method(self, method: str) -> CamMethod:
        return grad_cam_elementwise if method == "grad_cam_elementwise" else get_method(method)

    def preset(self, cams: Tensor, size: Sequence[int]) -> Tensor:
        return cams

    @contextmanager
    def _hooked(
        self, model: nn.Module, layer: nn.Module, method: str, reshape: ReshapeCall | None
    ) -> Iterator[Call]:
        grad_cam = BatchGradCam(model, layer, method=self.cam_method(method), reshape=reshape)
        yield lambda images, targets: grad_cam.attribute(images, target=targets)


_PYTORCH_GRAD_CAM_CLASSES = {
    "grad_cam": "GradCAM",
    "grad_cam_plus_plus": "GradCAMPlusPlus",
    "xgrad_cam": "XGradCAM",
    "hires_cam": "HiResCAM",
    "layer_cam": "LayerCAM",
    "grad_cam_elementwise": "GradCAMElementWise",
}
_TORCHCAM_CLASSES = {
    "grad_cam": "GradCAM",
    "grad_cam_plus_plus": "GradCAMpp",
    "xgrad_cam": "XGradCAM",
    "layer_cam": "LayerCAM",
}

#: The other libraries, by their names.
PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        _PytorchGradCam("pytorch-grad-cam", "grad-cam", tuple(_PYTORCH_GRAD_CAM_CLASSES), "unit"),
        _Captum("Captum", "captum", ("grad_cam",), "raw"),
        _TorchCam("TorchCAM", "torchcam", tuple(_TORCHCAM_CLASSES), "unit"),
    )
}

#: This package behind the same face; its raw maps are its own.
OURS: Peer = _Ours("batchcam_captum", "batchcam-captum", (*CAM_METHODS, "grad_cam_elementwise"), "raw")
