"""Call pytorch-grad-cam, Captum, TorchCAM and this package in the same way, to compare them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..attribution import BatchGradCam
from ..attribution._captum import LayerGradCam
from ..environment import version_of
from ..functional import CAM_METHODS, CamMethod
from ..optional import load
from .presets import (
    grad_cam_elementwise,
    pytorch_grad_cam_method,
    to_pytorch_grad_cam,
    to_torchcam,
    torchcam_method,
)

#: (images, one class per image) -> (N, 1, *spatial), detached, in the library's size and scale.
Call = Callable[[Tensor, list[int]], Tensor]
#: From a layer's output to (N, C, *spatial): selects and rearranges.
ReshapeCall = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    """A library: what it offers, how it is called, and the preset that turns this package's raw cams into its maps."""

    name: str
    distribution: str  #: its name on PyPI
    classes: dict[str, str]  #: method -> its class
    scale: Literal["unit", "raw"]  #: its maps are in [0, 1], or signed and unscaled
    #: (model, layer name, method, reshape) -> a context that gives a :data:`Call`. Its hooks are on the model inside only; what
    #: else it does to the model (eval mode, ``.grad``) stays, so pass a copy.
    opened: Callable[[nn.Module, str, str, ReshapeCall | None], AbstractContextManager[Call]]
    cam_method: Callable[[str], CamMethod]  #: method -> its weighting, for ``BatchGradCam(..., method=...)``
    preset: Callable[[Tensor, Sequence[int]], Tensor]  #: (raw cams, image size) -> its maps

    @property
    def version(self) -> str | None:
        """The installed version; None if it is not installed."""
        return version_of(self.distribution)


@contextmanager
def _pytorch_grad_cam(
    model: nn.Module, layer: str, method: str, reshape: ReshapeCall | None
) -> Iterator[Call]:
    library = load("pytorch_grad_cam", purpose="comparing with pytorch-grad-cam")
    target = load("pytorch_grad_cam.utils.model_targets", purpose="comparing with pytorch-grad-cam")
    kind = getattr(library, PEERS["pytorch-grad-cam"].classes[method])
    cam = kind(model, [model.get_submodule(layer)], reshape_transform=reshape)

    def call(images: Tensor, targets: list[int]) -> Tensor:
        maps = cam(images, [target.ClassifierOutputTarget(index) for index in targets])
        return torch.from_numpy(maps).unsqueeze(1)

    try:  # its own context manager swallows an IndexError of the block
        yield call
    finally:
        cam.activations_and_grads.release()
        cam.outputs = None


@contextmanager
def _torchcam(model: nn.Module, layer: str, method: str, reshape: ReshapeCall | None) -> Iterator[Call]:
    library = load("torchcam.methods", purpose="comparing with TorchCAM")
    kind = getattr(library, PEERS["TorchCAM"].classes[method])
    with kind(model, layer, reshape_transform=reshape) as extractor:

        def call(images: Tensor, targets: list[int]) -> Tensor:
            maps: Tensor = extractor(targets, model(images))[0]
            return maps.detach().unsqueeze(1)

        yield call


@contextmanager
def _captum(model: nn.Module, layer: str, method: str, reshape: ReshapeCall | None) -> Iterator[Call]:
    module = model.get_submodule(layer)
    # LayerGradCam has no reshape. It explains a module that receives the reshaped output; the model goes on with the layer's
    # output plus zero, the transpose of the reshape, through which the gradient of the maps is the reshaped gradient.
    explained = module if reshape is None else nn.Identity()

    def show(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        source = output.detach().requires_grad_()
        maps = explained(reshape(output))  # type: ignore[misc]
        (zero,) = torch.autograd.grad(
            reshape(source),  # type: ignore[misc]
            source,
            maps - maps.detach(),
            create_graph=True,
        )
        return output.detach() + zero

    def call(images: Tensor, targets: list[int]) -> Tensor:
        maps: Tensor = LayerGradCam(model, explained).attribute(images, target=targets)
        return maps.detach()

    handle = None if reshape is None else module.register_forward_hook(show)
    try:
        yield call
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def _ours(model: nn.Module, layer: str, method: str, reshape: ReshapeCall | None) -> Iterator[Call]:
    grad_cam = BatchGradCam(model, layer, method=OURS.cam_method(method), reshape=reshape)
    yield lambda images, targets: grad_cam.attribute(images, target=targets)


#: The other libraries, by name.
PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            name="pytorch-grad-cam",
            distribution="grad-cam",
            classes={
                "grad_cam": "GradCAM",
                "grad_cam_plus_plus": "GradCAMPlusPlus",
                "xgrad_cam": "XGradCAM",
                "hires_cam": "HiResCAM",
                "layer_cam": "LayerCAM",
                "grad_cam_elementwise": "GradCAMElementWise",
            },
            scale="unit",
            opened=_pytorch_grad_cam,
            cam_method=pytorch_grad_cam_method,
            preset=lambda cams, size: torch.from_numpy(to_pytorch_grad_cam(cams, size)).unsqueeze(1),
        ),
        Peer(
            name="Captum",
            distribution="captum",
            classes={"grad_cam": "LayerGradCam"},
            scale="raw",
            opened=_captum,
            cam_method=CAM_METHODS.__getitem__,
            preset=lambda cams, size: cams,
        ),
        Peer(
            name="TorchCAM",
            distribution="torchcam",
            classes={
                "grad_cam": "GradCAM",
                "grad_cam_plus_plus": "GradCAMpp",
                "xgrad_cam": "XGradCAM",
                "layer_cam": "LayerCAM",
            },
            scale="unit",
            opened=_torchcam,
            cam_method=torchcam_method,
            preset=lambda cams, size: to_torchcam(cams)[0].unsqueeze(1),
        ),
    )
}

#: This package in the same form. Its maps are the raw cams.
OURS = Peer(
    name="batchcam_captum",
    distribution="batchcam-captum",
    classes=dict.fromkeys([*CAM_METHODS, "grad_cam_elementwise"], "BatchGradCam"),
    scale="raw",
    opened=_ours,
    cam_method=lambda name: grad_cam_elementwise if name == "grad_cam_elementwise" else CAM_METHODS[name],
    preset=lambda cams, size: cams,
)
