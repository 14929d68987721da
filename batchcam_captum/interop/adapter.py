"""Classes that swap in for those of pytorch-grad-cam, with the values of its version 1.5.7.

``from batchcam_captum.interop import GradCAM`` replaces ``from pytorch_grad_cam import GradCAM``; the rest of the code stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..attribution import BatchGradCam
from ..attribution.reshape import Reshape, find_reshape
from ..functional import full_precision
from ..optional import load
from ..warn import warn_user
from .peer_targets import PeerTargets, check_targets, target_scores
from .presets import pytorch_grad_cam_method, to_pytorch_grad_cam

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    import numpy as np

__all__ = [
    "CamAdapter",
    "EigenCAM",
    "EigenGradCAM",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "HiResCAM",
    "LayerCAM",
    "XGradCAM",
]

#: The methods that subclasses of pytorch-grad-cam's classes override. Nothing here calls them.
_NOT_CALLED = (
    "get_cam_weights",
    "get_cam_image",
    "compute_cam_per_layer",
    "aggregate_multi_layers",
    "forward_augmentation_smoothing",
    "get_target_width_height",
)
#: Argument of BatchGradCam -> argument of the adapter.
_ARGUMENTS = {"layer": "target_layers", "reshape": "reshape_transform", "forward_func": "model"}


class Augmentation(Protocol):
    """One augmented version of the images, such as an entry of ``ttach.Compose``."""

    def augment_image(self, image: Tensor) -> Tensor:
        """Change the images, (N, C, *spatial)."""

    def deaugment_mask(self, mask: Tensor) -> Tensor:
        """Turn maps of the changed images, (N, 1, *spatial), into maps of the original ones."""


@dataclass(frozen=True)
class _FlipAndScale:
    """Mirror along dimension 3, as ttach does, and multiply the values by a factor."""

    flip: bool
    factor: float

    def augment_image(self, image: Tensor) -> Tensor:
        image = image.flip(3) if self.flip else image
        return image if self.factor == 1 else image * self.factor

    def deaugment_mask(self, mask: Tensor) -> Tensor:
        return mask.flip(3) if self.flip else mask


#: pytorch-grad-cam's default: three brightnesses, each also mirrored.
_DEFAULT_AUGMENTATIONS = tuple(
    _FlipAndScale(flip, factor) for flip in (False, True) for factor in (0.9, 1.0, 1.1)
)


class CamAdapter:
    """The base of the adapters: pytorch-grad-cam's constructor and call, and its maps.

    Maps are computed in eval mode; afterwards every module is in the mode it was in. A call takes one forward and one
    ``torch.autograd.grad`` for the whole batch and all layers, and leaves no hook, ``.grad`` or graph behind. The context manager
    has nothing to release, so the object also works before and after the ``with`` block.

    Args:
        model: called with one tensor of images; returns scores (N, K), or whatever the targets turn into scores: a tensor (N, …)
            or a list with one entry per image.
        target_layers: the layers whose maps are averaged: a list of modules or names. As in pytorch-grad-cam, a single
            ``nn.Sequential`` or ``nn.ModuleList`` is the list of its children; pass ``[sequential]`` for its own map. Any other
            single module or name is one layer.
        reshape_transform: a function that turns a layer's output, and its gradient, into (N, C, *spatial); or ``"auto"``,
            ``"tokens"`` or ``"channels_last"``, as ``reshape`` of :class:`~batchcam_captum.attribution.BatchGradCam`.
        tta_transforms: the augmentations of ``aug_smooth``: an iterable of objects with ``augment_image`` and
            ``deaugment_mask``, such as ``ttach.Compose``. Default: mirrored or not, times 0.9, 1 and 1.1.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: an unknown layer name, or a layer listed twice.

    Example:
        >>> import torch
        >>> from batchcam_captum.interop import GradCAM
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 14 * 14, 10)
        ... )
        >>> with GradCAM(model=model, target_layers=[model[1]]) as cam:
        ...     maps = cam(input_tensor=torch.rand(4, 3, 16, 16), targets=None)
        >>> maps.shape, maps.dtype, cam.outputs.shape
        ((4, 16, 16), dtype('float32'), torch.Size([4, 10]))
    """

    #: The weighting, a name of :func:`~batchcam_captum.interop.pytorch_grad_cam_method`.
    _method: ClassVar[str] = "hires_cam"
    #: Project the channels to their first principal component even without ``eigen_smooth``.
    _projected: ClassVar[bool] = False
    #: False: the maps are made of the activations alone.
    uses_gradients: ClassVar[bool] = True

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name in _NOT_CALLED:
            if hasattr(cls, name):
                raise TypeError(
                    f"{cls.__name__}: expected no method {name}, which pytorch-grad-cam calls and this package does not; pass "
                    f"BatchGradCam(model, layers, method=function) a function of activations and gradients, or subclass "
                    f"pytorch_grad_cam's own class"
                )

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str,
        reshape_transform: Reshape = None,
        tta_transforms: Iterable[Augmentation] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        method = pytorch_grad_cam_method(self._method)
        with _adapter_argument_names():
            self._grad_cam = BatchGradCam(
                model, _listed(target_layers), method=method, reshape=reshape_transform
            )
        self.model = model
        self.target_layers = self._grad_cam.layers
        self.reshape_transform = reshape_transform
        self.tta_transforms: Iterable[Augmentation] = (
            _DEFAULT_AUGMENTATIONS if tta_transforms is None else tta_transforms
        )
        #: The model's output in the last call, detached; with ``aug_smooth`` of the last augmented images.
        self.outputs: Any = None

    @property
    def device(self) -> torch.device:
        """The device of the model's first parameter or buffer. Images are moved there."""
        found = next(chain(self.model.parameters(), self.model.buffers()), None)
        return torch.device("cpu") if found is None else found.device

    def __call__(
        self,
        input_tensor: Tensor,
        targets: PeerTargets = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> np.ndarray:
        """Explain a batch of images.

        Args:
            input_tensor: images (N, C, H, W) or volumes (N, C, D, H, W).
            targets: the score that is explained: one function of an image's output per image, such as those of
                ``pytorch_grad_cam.utils.model_targets``; one integer per image, in a list or a tensor; or one integer for all.
                None: each image's highest score.
            aug_smooth: average over augmented versions, six by default, each with its own forward and gradient.
            eigen_smooth: project the channels to their first principal component instead of summing them.

        Returns:
            (N, H, W) or (N, D, H, W), float32 in [0, 1], at the images' size.

        Raises:
            TypeError: images or targets of a wrong type, or a model output without one row per image.
            ValueError: images of another shape, a number of targets other than N, a class that the output does not have, or
                activations that are not (N, C, *spatial) with as many spatial dimensions as the images.
            RuntimeError: the forward does not reach a layer, or the scores do not depend on it.

        Warns:
            UserWarning: a layer runs more than once in a forward; its last run is explained.
        """
        if not aug_smooth:
            return self.forward(input_tensor, targets, eigen_smooth)
        np = load("numpy", purpose="aug_smooth")
        images = self._checked(input_tensor)
        targets = check_targets(targets, len(images)) if self.uses_gradients else None
        maps = []
        for augmentation in self.tta_transforms:
            found = self.forward(augmentation.augment_image(images), targets, eigen_smooth)
            restored = augmentation.deaugment_mask(torch.from_numpy(found).unsqueeze(1))
            maps.append(restored.squeeze(1).numpy())
        shapes = sorted({entry.shape for entry in maps})
        if len(shapes) != 1:
            raise ValueError(
                f"tta_transforms: expected transforms whose maps have one size, got {shapes or 'no transform'}"
            )
        return np.mean(np.float32(maps), axis=0)  # type: ignore[no-any-return]

    def forward(
        self, input_tensor: Tensor, targets: PeerTargets = None, eigen_smooth: bool = False
    ) -> np.ndarray:
        """Explain a batch of images without ``aug_smooth``. ``aug_smooth`` calls this once per augmented version."""
        images = self._checked(input_tensor)
        projected = eigen_smooth or self._projected
        with _in_eval_mode(self.model), _adapter_argument_names():
            if self.uses_gradients:
                checked = check_targets(targets, len(images))
                layers = self._attributions(images, checked, channel_sum=not projected)
            else:
                layers = self._activations(images)
            for name, entry in zip(self._grad_cam.layer_names, layers, strict=True):
                _check_layer(name, entry, images)
            if projected:
                layers = [_first_component(entry) for entry in layers]
            return to_pytorch_grad_cam(layers, images.shape[2:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release nothing, and let exceptions pass."""

    def _checked(self, images: Any) -> Tensor:
        if not isinstance(images, Tensor):
            raise TypeError(f"input_tensor: expected a tensor, got {type(images).__name__}")
        if images.dim() not in (4, 5) or not len(images):
            raise ValueError(
                f"input_tensor: expected at least one image (N, C, H, W) or volume (N, C, D, H, W), got {tuple(images.shape)}"
            )
        has_device = next(chain(self.model.parameters(), self.model.buffers()), None) is not None
        return images.to(self.device) if has_device else images

    def _attributions(self, images: Tensor, targets: list[Any] | None, *, channel_sum: bool) -> list[Tensor]:
        """Return one cam per layer, (N, 1, *spatial), or without the sum each channel's contribution, (N, C, *spatial)."""

        def scores(output: Any) -> Tensor:
            self._keep(output)
            return target_scores(output, targets, len(images))

        # A copy, so that calls in other threads have their own targets. It is kept for what it has learned about the model.
        grad_cam = copy(self._grad_cam)
        grad_cam.output = scores
        try:
            found: list[Tensor] = grad_cam.attribute(images, attr_dim_summation=channel_sum)
        finally:
            grad_cam.output = None
        self._grad_cam = grad_cam
        return found

    def _activations(self, images: Tensor) -> list[Tensor]:
        """Return each layer's output, (N, C, *spatial), from a forward without a graph."""
        outputs: dict[nn.Module, Any] = {}

        def keep(module: nn.Module, _: Any, output: Any) -> None:
            if module in outputs:
                warn_user(
                    f"{type(module).__name__}: the layer runs more than once in a forward; its last run is explained"
                )
            outputs[module] = tree_map_only(Tensor, torch.clone, output)  # before in-place operations

        with torch.inference_mode(False), torch.no_grad(), ExitStack() as stack:
            for layer in self.target_layers:
                stack.callback(layer.register_forward_hook(keep).remove)
            self._keep(self.model(images))
            for layer in self.target_layers:
                if layer not in outputs:
                    raise RuntimeError(
                        f"target_layers: expected layers that the forward runs, got {type(layer).__name__}, which it does not "
                        f"reach; check that it is part of the model (a compiled model runs no hooks: pass the original)"
                    )
            return [
                find_reshape(
                    self.reshape_transform,
                    outputs[layer],
                    forward_func=self.model,
                    layer=layer,
                    input_size=tuple(images.shape[2:]),
                    samples=len(images),
                )(outputs[layer])
                for layer in self.target_layers
            ]

    def _keep(self, output: Any) -> None:
        self.outputs = tree_map_only(Tensor, torch.detach, output)


class GradCAM(CamAdapter):
    """Grad-CAM; see :class:`CamAdapter`."""

    _method = "grad_cam"


class GradCAMPlusPlus(CamAdapter):
    """Grad-CAM++ with pytorch-grad-cam's epsilon of 1e-6; see :class:`CamAdapter`."""

    _method = "grad_cam_plus_plus"


class XGradCAM(CamAdapter):
    """XGrad-CAM with pytorch-grad-cam's epsilon of 1e-7; see :class:`CamAdapter`."""

    _method = "xgrad_cam"


class HiResCAM(CamAdapter):
    """HiResCAM; see :class:`CamAdapter`. With ``eigen_smooth`` the map no longer sums to the score."""

    _method = "hires_cam"


class LayerCAM(CamAdapter):
    """LayerCAM; see :class:`CamAdapter`."""

    _method = "layer_cam"


class GradCAMElementWise(CamAdapter):
    """Gradients times activations, rectified before the sum over the channels; see :class:`CamAdapter`."""

    _method = "grad_cam_elementwise"


class EigenGradCAM(CamAdapter):
    """The first principal component of gradients times activations; see :class:`CamAdapter`."""

    _method = "hires_cam"
    _projected = True


class EigenCAM(CamAdapter):
    """The first principal component of the activations; see :class:`CamAdapter`.

    It explains no class and ignores the targets. A layer may return a dictionary or a tuple if ``reshape_transform`` turns it
    into a tensor (N, C, *spatial), as pytorch-grad-cam's transform for the backbone of a Faster R-CNN does.
    """

    _projected = True
    uses_gradients = False


def _listed(target_layers: Any) -> list[Any]:
    """Return one entry per layer, as pytorch-grad-cam iterates over them."""
    if isinstance(target_layers, nn.Sequential | nn.ModuleList):
        return list(target_layers)
    if isinstance(target_layers, nn.Module | str):
        return [target_layers]
    if not isinstance(target_layers, Iterable):
        raise TypeError(
            f"target_layers: expected a list of modules or names, got {type(target_layers).__name__}"
        )
    return list(target_layers)


def _check_layer(name: str, entry: Any, images: Tensor) -> None:
    expected = f"(N, C, {'H, W' if images.dim() == 4 else 'D, H, W'})"
    if not isinstance(entry, Tensor):
        raise TypeError(
            f"target_layers: expected {name} to return a tensor {expected}, got {type(entry).__name__}; choose a layer inside "
            f"it, or pass a reshape_transform that makes a tensor of it"
        )
    if entry.dim() != images.dim() or len(entry) != len(images):
        raise ValueError(
            f"target_layers: expected activations {expected} from {name}, one row for each of {len(images)} images, got maps of "
            f'shape {tuple(entry.shape)}; pass a reshape_transform (reshape_transform="auto" handles tokens and channels-last '
            f"layers), or choose another layer"
        )


@contextmanager
def _adapter_argument_names() -> Iterator[None]:
    """Rename the argument that an error of BatchGradCam begins with."""
    try:
        yield
    except (TypeError, ValueError) as error:
        name, _, rest = str(error).partition(":")
        if name not in _ARGUMENTS:
            raise
        raise type(error)(f"{_ARGUMENTS[name]}:{rest}") from error


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _first_component(channels: Tensor) -> Tensor:
    """Project each position onto the first principal component of the channels, as pytorch-grad-cam 1.5.7 does.

    The sign of a singular vector is LAPACK's choice and negative values are cut off afterwards, so NumPy decomposes here as it
    does there.

    Args:
        channels: (N, C, *spatial). NaN counts as zero.

    Returns:
        (N, 1, *spatial), float32, signed.

    Raises:
        numpy.linalg.LinAlgError: infinite values.
    """
    np = load("numpy", purpose="eigen_smooth")
    channels = full_precision(channels.detach()).cpu()
    tables = channels.masked_fill(channels.isnan(), 0).flatten(2).numpy()
    components = []
    for table in tables:
        positions = table.T - table.T.mean(axis=0)
        _, _, directions = np.linalg.svd(positions, full_matrices=False)
        components.append(torch.from_numpy(np.float32(positions @ directions[0])))
    return torch.stack(components).reshape(len(channels), 1, *channels.shape[2:])
