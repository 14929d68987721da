"""pytorch-grad-cam's face over :class:`~batchcam_captum.attribution.BatchGradCam`: for code written against that library.

``from batchcam_captum.interop import GradCAM`` instead of ``from pytorch_grad_cam import GradCAM``, and the rest of the code
stays. The maps are those of pytorch-grad-cam 1.5.7, its epsilons included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..attribution import BatchGradCam
from ..attribution.reshape import Reshape
from .adapter_checks import check_places, check_subclass, in_the_adapters_words, listed_layers, naming_types
from .eigen import first_component, layer_outputs
from .peer_methods import pytorch_grad_cam_method
from .peer_targets import PeerTargets, check_targets, target_scores
from .presets import to_pytorch_grad_cam
from .smoothing import DEFAULT_AUGMENTATIONS, Augmentation, mean_over_augmentations

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


class CamAdapter:
    """What the classes of CAMs have in common: pytorch-grad-cam's constructor and call, and its maps.

    Maps are computed in eval mode, as there; afterwards every module is in the mode that it was in. A call takes one forward and
    one ``torch.autograd.grad`` for the whole batch and all layers, and leaves nothing behind: no hooks, no ``.grad``, no graph.
    So the context manager has nothing to release, and the object can be used before, in and after it.

    Subclasses cannot bring a weighting of their own as they do there, by overriding ``get_cam_weights`` or ``get_cam_image``:
    that is a TypeError where the class is defined. ``BatchGradCam(…, method=function)`` takes a weighting.

    Args:
        model: called with one tensor of images; returns scores (N, K), or what the targets make scores of: a tensor (N, …), or a
            list with an entry for each image.
        target_layers: the layers whose maps are averaged: a list of modules or of their names. A lone ``nn.Sequential`` or
            ``nn.ModuleList`` is the list of its children, as there; pass ``[sequential]`` for its own map. Any other lone module
            is a single layer, and so is a lone name.
        reshape_transform: a function from what a layer returns to (N, C, *spatial), for activations and gradients alike; also
            ``"auto"`` and the other names that :class:`~batchcam_captum.attribution.BatchGradCam` takes as ``reshape``.
        tta_transforms: for ``aug_smooth``: an iterable of objects with ``augment_image`` and ``deaugment_mask``, such as
            ``ttach.Compose``. None: mirrored and not, times 0.9, 1 and 1.1.

    Raises:
        TypeError: a model that is no module, or another argument of a wrong kind.
        ValueError: the model has no layer of a name, or a layer is listed twice.

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

    #: Of the weighting, see :func:`~batchcam_captum.interop.pytorch_grad_cam_method`.
    _method: ClassVar[str]
    #: Whether the map is the first principal component of the channels' shares even without ``eigen_smooth``.
    _projected: ClassVar[bool] = False
    #: Whether the shares are gradients times activations, or the activations alone.
    uses_gradients: ClassVar[bool] = True

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        check_subclass(cls)

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module | str] | nn.Module | str,
        reshape_transform: Reshape = None,
        tta_transforms: Iterable[Augmentation] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        layers = listed_layers(target_layers)
        method = pytorch_grad_cam_method(self._method)
        with in_the_adapters_words():
            self._grad_cam = BatchGradCam(model, layers, method=method, reshape=reshape_transform)
        self.model = model
        self.target_layers = self._grad_cam.layers
        self.reshape_transform = reshape_transform
        self.tta_transforms: Iterable[Augmentation] = (
            DEFAULT_AUGMENTATIONS if tta_transforms is None else tta_transforms
        )
        #: What the model returned in the last call, detached; with ``aug_smooth`` for the last of the augmented images.
        self.outputs: Any = None

    @property
    def device(self) -> torch.device:
        """Where the model is now, and images are brought to: the device of its first parameter or buffer."""
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
            input_tensor: images (N, C, H, W) or volumes (N, C, D, H, W); brought to the model's device.
            targets: which score of each image is explained: one function of this image's output for each, such as those of
                ``pytorch_grad_cam.utils.model_targets``; or one integer for each, in a list or a tensor; or a single integer.
                None: each image's highest category.
            aug_smooth: the mean over augmented versions, six by default, each with its own forward and gradient.
            eigen_smooth: the first principal component of the channels' shares instead of their sum.

        Returns:
            (N, H, W) or (N, D, H, W), float32 in [0, 1], of the images' size.

        Raises:
            TypeError: images or targets of a wrong kind, images of a type that the model does not take, or an output that has no
                row for each image.
            IndexError: a target asks for an index that the output does not have.
            ValueError: images of another shape, a number of targets other than N, or activations that are not (N, C, *spatial)
                with as many spatial dimensions as the images.
            RuntimeError: the forward does not reach a layer, or the scores do not depend on it.

        Warns:
            UserWarning: a layer runs more than once in a forward; its last run is explained.
        """
        if not aug_smooth:
            return self.forward(input_tensor, targets, eigen_smooth)
        images = self._checked(input_tensor)
        # Listed once: each of the augmented images is explained by them.
        listed = check_targets(targets, len(images)) if self.uses_gradients else None
        return mean_over_augmentations(
            lambda augmented: self.forward(augmented, listed, eigen_smooth), images, self.tta_transforms
        )

    def forward(
        self, input_tensor: Tensor, targets: PeerTargets = None, eigen_smooth: bool = False
    ) -> np.ndarray:
        """The same without ``aug_smooth``, which calls this for each of the augmented versions."""
        images = self._checked(input_tensor)
        listed = check_targets(targets, len(images)) if self.uses_gradients else None
        with _evaluating(self.model), in_the_adapters_words(), naming_types(images, self.model):
            return self._maps(images, listed, eigen_smooth)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing to release; what was raised goes on, an IndexError as well."""

    def _checked(self, images: Any) -> Tensor:
        if not isinstance(images, Tensor):
            raise TypeError(f"input_tensor: expected a tensor, got {type(images).__name__}")
        if images.dim() not in (4, 5) or not len(images):
            raise ValueError(
                f"input_tensor: expected images (N, C, H, W) or volumes (N, C, D, H, W), at least one, got "
                f"{tuple(images.shape)}"
            )
        if next(chain(self.model.parameters(), self.model.buffers()), None) is None:
            return images  # a model of no device takes them where they are
        return images.to(self.device)

    def _maps(self, images: Tensor, targets: list[Any] | None, eigen_smooth: bool) -> np.ndarray:
        projected = eigen_smooth or self._projected
        if self.uses_gradients:
            found = self._shares(images, targets, channel_sum=not projected)
        else:
            found = self._activations(images)
        for layer, entry in zip(self._grad_cam.layer_names, found, strict=True):
            check_places(layer, entry, images)
        if projected:
            found = [first_component(shares) for shares in found]
        return to_pytorch_grad_cam(found, images.shape[2:])

    def _shares(self, images: Tensor, targets: list[Any] | None, *, channel_sum: bool) -> list[Any]:
        """What each layer's channels add to its map, (N, C, *spatial); with ``channel_sum`` their sum, (N, 1, *spatial)."""

        def scores_of(output: Any) -> Tensor:
            self._keep(output)
            return target_scores(output, targets, len(images))

        # A copy, so that calls in other threads have their own targets; kept, as it has learnt how the model is recorded.
        grad_cam = copy(self._grad_cam)
        grad_cam.output = scores_of
        try:
            found: list[Any] = grad_cam.attribute(images, attr_dim_summation=channel_sum)
        finally:
            grad_cam.output = None
        self._grad_cam = grad_cam
        return found

    def _activations(self, images: Tensor) -> list[Any]:
        """What each layer returns, (N, C, *spatial)."""
        shape = tuple(images.shape)
        with torch.inference_mode(False), torch.no_grad():
            returned, output = layer_outputs(self.model, self.target_layers, images)
            self._keep(output)
            return [
                self._grad_cam.cam_of(entry, position=position, input_shape=shape).activations
                for position, entry in enumerate(returned)
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
    """HiResCAM; see :class:`CamAdapter`. With ``eigen_smooth`` the map no longer sums to the score; nothing is printed then."""

    _method = "hires_cam"


class LayerCAM(CamAdapter):
    """LayerCAM; see :class:`CamAdapter`."""

    _method = "layer_cam"


class GradCAMElementWise(CamAdapter):
    """Gradients times activations, negative products left out before the sum; see :class:`CamAdapter`."""

    _method = "grad_cam_elementwise"


class EigenGradCAM(CamAdapter):
    """The first principal component of gradients times activations; see :class:`CamAdapter`."""

    _method = "hires_cam"
    _projected = True


class EigenCAM(CamAdapter):
    """The first principal component of the activations; see :class:`CamAdapter`.

    No class is explained: targets are not looked at. The forward has no graph. A layer may return a dictionary or a tuple where
    ``reshape_transform`` makes a tensor (N, C, *spatial) of it, as pytorch-grad-cam's for the backbone of a Faster R-CNN does.
    """

    _method = "hires_cam"  # of no account
    _projected = True
    uses_gradients = False


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """All modules in eval mode, and afterwards each in its own again."""
    training = [module for module in model.modules() if module.training]
    if not training:
        yield
        return
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True
