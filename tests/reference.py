"""The slow, obvious twins: loops over samples and classes, straight from the formulas, in float64."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize(image, size):
    """One map (*spatial): area where no side grows, linear otherwise."""
    if tuple(image.shape) == tuple(size):
        return image
    if all(new <= old for new, old in zip(size, image.shape, strict=True)):
        return F.interpolate(image[None, None], size=tuple(size), mode="area")[0, 0]
    return F.interpolate(image[None, None], size=tuple(size), mode=LINEAR[len(size)], align_corners=False)[
        0, 0
    ]


def is_dead(cam):
    return bool(cam.max().clamp(min=0) <= 1e-3 * cam.abs().max())


def over_max(image):
    return image / image.max() if image.max() > 0 else image * 0


def normalized(cam, method="max"):
    """relu(C), then divided by its maximum ("max"), or brought to [0, 1] ("minmax"), or left alone ("none")."""
    if is_dead(cam):
        return cam * 0
    positive = cam.clamp(min=0)
    if method == "minmax":
        positive = positive - positive.min()
    return positive if method == "none" else over_max(positive)


def l1(first, second):
    return sum((a - b).abs() for a, b in zip(first.flatten(), second.flatten(), strict=True)) / first.numel()


def l2(first, second):
    return sum((a - b) ** 2 for a, b in zip(first.flatten(), second.flatten(), strict=True)) / first.numel()


def cosine(first, second):
    """1 − cosine similarity; 1 if a map is all zero."""
    norms = first.square().sum().sqrt() * second.square().sum().sqrt()
    return 1 - (first * second).sum() / norms if norms > 0 else 1 + (first * 0).sum()


def ssim(first, second):
    """1 − SSIM by a loop over window positions."""
    shortest = min(first.shape)
    side = min(11, max(3, shortest // 2 + 1), shortest)
    side -= 1 - side % 2
    line = torch.tensor([math.exp(-((i - side // 2) ** 2) / 4.5) for i in range(side)], dtype=first.dtype)
    window = line / line.sum()
    for _ in range(first.dim() - 1):
        window = window.unsqueeze(-1) * (line / line.sum())
    values = []
    for corner in torch.cartesian_prod(*[torch.arange(s - side + 1) for s in first.shape]).reshape(
        -1, first.dim()
    ):
        box = tuple(slice(int(start), int(start) + side) for start in corner)
        a, b = first[box], second[box]
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        var_a = (window * (a - mean_a) ** 2).sum()
        var_b = (window * (b - mean_b) ** 2).sum()
        cov = (window * (a - mean_a) * (b - mean_b)).sum()
        values.append(
            (2 * mean_a * mean_b + 1e-4)
            * (2 * cov + 9e-4)
            / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
        )
    return 1 - sum(values) / len(values)


DISTANCES = {"l1": l1, "l2": l2, "cosine": cosine, "ssim": ssim}


def rows_of(labels, num_classes):
    """Each sample's class weights as a list of numbers; None for an ignored sample."""
    if labels.is_floating_point():
        return [row.tolist() for row in labels]
    return [
        None if label == -100 else [float(c == label) for c in range(num_classes)]
        for label in labels.tolist()
    ]


def _at_one_size(image, target, resolution):
    """(map, target) at the size of the comparison, the target divided by its maximum."""
    if resolution == "map":
        return image, over_max(resize(target, image.shape))
    return resize(image, target.shape), over_max(target)


def mixed(row, prototypes, cam, resolution):
    """The prototype of a sample at the size of the comparison: Σ_c w_c P_c."""
    return sum(w * _at_one_size(cam, p[0], resolution)[1] for w, p in zip(row, prototypes, strict=True))


def prototype_losses(
    cams, labels, prototypes, distance="l1", resolution="map", revive=True, normalization="max"
):
    """D(M_i, P_y), a dead cam pays 1 − cosine(C, P_y): list of N, None where ignored."""
    losses = []
    for cam, row in zip(cams[:, 0], rows_of(labels, len(prototypes)), strict=True):
        if row is None:
            losses.append(None)
            continue
        target = mixed(row, prototypes, cam, resolution)
        if revive and is_dead(cam):
            losses.append(cosine(resize(cam, target.shape), target))
        else:
            losses.append(DISTANCES[distance](resize(normalized(cam, normalization), target.shape), target))
    return losses


def batch_cam_losses(
    cams, labels, prototypes, distance="l1", resolution="map", revive=True, normalization="max"
):
    """(alive/n) D(mean of the alive, P) + (1/n) Σ_dead revive: list of K, None where absent."""
    rows = rows_of(labels, len(prototypes))
    losses = []
    for c, prototype in enumerate(prototypes[:, 0]):
        members = [
            (row[c], row, cam)
            for cam, row in zip(cams[:, 0], rows, strict=True)
            if row is not None and row[c] > 0
        ]
        if not members:
            losses.append(None)
            continue
        total = sum(weight for weight, _, _ in members)
        averaged = [(w, cam) for w, _, cam in members if not (revive and is_dead(cam))]
        loss = 0 * cams.sum()
        if averaged:
            size = _at_one_size(members[0][2], prototype, resolution)[1].shape
            share = sum(w for w, _ in averaged)
            mean = sum(w * resize(normalized(cam, normalization), size) for w, cam in averaged) / share
            target = _at_one_size(members[0][2], prototype, resolution)[1]
            loss = loss + share / total * DISTANCES[distance](mean, target)
        for weight, row, cam in members:
            if revive and is_dead(cam):
                target = mixed(row, prototypes, cam, resolution)
                loss = loss + weight / total * cosine(resize(cam, target.shape), target)
        losses.append(loss)
    return losses


def contrastive_losses(cams, labels, prototypes, temperature=0.1, resolution="prototype", seen=None):
    """−Σ_c w_c log softmax_c(unit(C − mean C) · unit(P_c − mean_c P_c) / τ): list of N, None where ignored."""
    seen = [True] * len(prototypes) if seen is None else seen.tolist()
    losses = []
    for cam, row in zip(cams[:, 0], rows_of(labels, len(prototypes)), strict=True):
        if row is None:
            losses.append(None)
            continue
        pairs = [_at_one_size(cam, p[0], resolution) for p, s in zip(prototypes, seen, strict=True) if s]
        common = sum(target for _, target in pairs) / len(pairs)
        own = pairs[0][0] - pairs[0][0].mean()
        logits = [(1 - cosine(own, target - common)) / temperature for _, target in pairs]
        normalizer = sum(logit.exp() for logit in logits).log()
        weights = [w for w, s in zip(row, seen, strict=True) if s]
        losses.append(sum(w * (normalizer - logit) for w, logit in zip(weights, logits, strict=True)))
    return losses


def image_losses(cams, images, distance="l2", resolution="map", revive=True):
    """D(M_i, x_i): list of N."""
    losses = []
    for cam, image in zip(cams[:, 0], images[:, 0], strict=True):
        _, target = _at_one_size(cam, image, resolution)
        signed = resize(cam, target.shape)
        dead = revive and is_dead(cam)
        losses.append(
            cosine(signed, target)
            if dead
            else DISTANCES[distance](resize(normalized(cam), target.shape), target)
        )
    return losses


def reduced(losses, reduction):
    """A list with None for what does not count, reduced as the losses do it."""
    present = [loss for loss in losses if loss is not None]
    if reduction == "none":
        return torch.stack([torch.zeros_like(present[0]) if loss is None else loss for loss in losses])
    total = sum(present)
    return total / len(present) if reduction == "mean" else total


def cam_of(activations, score):
    """Signed Grad-CAM of one sample: activations (1, C, h, w) and its own score, graph kept."""
    (gradients,) = torch.autograd.grad(score, activations, create_graph=True)
    weights = [gradient.mean() for gradient in gradients[0]]
    return sum(weight * channel for weight, channel in zip(weights, activations[0], strict=True))[None, None]


def mean_images(images, labels, num_classes):
    """float64 mean over channels and over each class's images, one image at a time."""
    means = torch.zeros(num_classes, 1, *images.shape[2:], dtype=torch.float64)
    counts = [0] * num_classes
    for image, label in zip(images.double(), labels.tolist(), strict=True):
        if label >= 0:
            means[label, 0] += image.mean(0)
            counts[label] += 1
    return torch.stack([mean / max(count, 1) for mean, count in zip(means, counts, strict=True)]), counts
