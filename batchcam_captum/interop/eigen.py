"""pytorch-grad-cam's first principal component, and the activations that it needs no gradient for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..functional import full_precision
from ..optional import load
from ..warn import warn_user


@torch.no_grad()
def first_component(shares: Tensor) -> Tensor:
    """Each place's coordinate along the first principal component of the channels, as pytorch-grad-cam 1.5.7 computes it.

    Places are observations and channels are variables: (h·w, C), its column means subtracted, times its first right singular
    vector. The sign of a singular vector is LAPACK's choice, and what is negative is cut off afterwards, so the decomposition is
    NumPy's, as there, of the same numbers in the same order. The reduced one has the same first vector as the full one that
    pytorch-grad-cam asks for, and does not compute the C × C vectors that nobody reads.

    Where several channels are zero in an image, and there are no more channels than places, the last bit of the shares decides
    about the sign, here as there; :func:`~batchcam_captum.interop.pytorch_grad_cam_method` has it right on the CPU.

    Args:
        shares: (N, C, *spatial), each channel's share of the cam, or the activations themselves. NaN counts as zero.

    Returns:
        (N, 1, *spatial), float32, signed.

    Raises:
        numpy.linalg.LinAlgError: infinite values.
    """
    np = load("numpy", purpose="eigen_smooth")
    samples, channels, *spatial = shares.shape
    tables = full_precision(shares.detach()).cpu().masked_fill(shares.isnan().cpu(), 0)
    components = []
    for table in tables.reshape(samples, channels, -1).contiguous().numpy():
        places = table.T - table.T.mean(axis=0)
        _, _, directions = np.linalg.svd(places, full_matrices=False)
        components.append(torch.from_numpy(np.float32(places @ directions[0])))
    return torch.stack(components).reshape(samples, 1, *spatial)


@torch.no_grad()
def layer_outputs(model: nn.Module, layers: Sequence[nn.Module], images: Tensor) -> tuple[list[Any], Any]:
    """Run the model once, without a graph, and remember what the layers returned.

    Args:
        model: called with ``images`` alone.
        layers: whose outputs are asked for.
        images: the model's input.

    Returns:
        What each layer returned, in copies that in-place operations after it do not rewrite: a tensor, or a dictionary or tuple
        of them; and what the model returned.

    Raises:
        RuntimeError: a layer is not reached.

    Warns:
        UserWarning: a layer runs more than once; its last run is returned.
    """
    seen: dict[nn.Module, list[Any]] = {layer: [] for layer in layers}

    def see(module: nn.Module, _: Any, returned: Any) -> None:
        seen[module].append(tree_map_only(Tensor, torch.clone, returned))

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(see).remove)
        output = model(images)
    for layer, runs in seen.items():
        name = type(layer).__name__
        if not runs:
            raise RuntimeError(
                f"{name}: expected a layer that the forward runs through, got no run of it; check that the layer belongs to the "
                f"model (a compiled model runs no hooks: pass the original one)"
            )
        if len(runs) > 1:
            warn_user(f"{name}: the layer runs {len(runs)} times in one forward; its last run is explained")
    return [seen[layer][-1] for layer in layers], output
