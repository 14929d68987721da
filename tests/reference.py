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


def nearest(distance, image, candidates):
    """The smallest distance, and the candidate it belongs to."""
    distances = [distance(image, candidate) for candidate in candidates]
    best = min(range(len(distances)), key=lambda p: float(distances[p].detach()))
    return distances[best], candidates[best]


def sized(prototypes, size):
    """(K, P, …) at the size of the comparison, each divided by its maximum: nested lists."""
    return [[over_max(resize(each, size)) for each in own] for own in prototypes]


def own_prototypes(row, label, cam, image, prototypes):
    """The candidates of one sample: all of its class, or with soft labels the mixture of each class's nearest."""
    if label is not None:
        return prototypes[label]
    dead = is_dead(cam)
    mixture = 0
    for weight, own in zip(row, prototypes, strict=True):
        if dead:
            _, chosen = nearest(cosine, resize(cam, own[0].shape), own)
        else:
            _, chosen = nearest(DISTANCES["l2"], image, own)
        mixture = mixture + weight / sum(row) * chosen
    return [mixture]


def _samples(cams, labels, num_classes):
    """(cam, weights of the classes, label or None) of each sample; weights None where it is ignored."""
    for i, (cam, row) in enumerate(zip(cams[:, 0], rows_of(labels, num_classes), strict=True)):
        soft = labels.is_floating_point()
        ignored = row is None or not any(row)
        yield cam, None if ignored else row, None if soft or ignored else int(labels[i])


def prototype_losses(cams, labels, prototypes, distance="l1", revive=True, normalization="max"):
    """min_p D(M_i, P_yp); a dead cam pays min_p 1 − cosine(C, P_yp)."""
    losses, prototypes = [], sized(prototypes, cams.shape[2:])
    for cam, row, label in _samples(cams, labels, len(prototypes)):
        if row is None:
            losses.append(None)
            continue
        image = resize(normalized(cam, normalization), prototypes[0][0].shape)
        own = own_prototypes(row, label, cam, image, prototypes)
        if revive and is_dead(cam):
            losses.append(nearest(cosine, resize(cam, image.shape), own)[0])
        else:
            losses.append(nearest(DISTANCES[distance], image, own)[0])
    return losses


def batch_cam_losses(cams, labels, prototypes, distance="l1", revive=True, normalization="max", weights=None):
    """(alive/n) min_p D(mean of the alive, P_p) + (1/n) Σ_dead revive, n the sum of weights: list of K, None where absent."""
    weights = [1.0] * len(cams) if weights is None else weights
    prototypes = sized(prototypes, cams.shape[2:])
    size = prototypes[0][0].shape
    members = [
        (weight, cam, row, label)
        for weight, (cam, row, label) in zip(weights, _samples(cams, labels, len(prototypes)), strict=True)
        if row is not None and weight > 0
    ]
    losses = []
    for c in range(len(prototypes)):
        total = sum(weight * row[c] for weight, _, row, _ in members)
        if not total:
            losses.append(None)
            continue
        share, mean, paid = 0.0, 0.0, 0 * cams.sum()
        for weight, cam, row, label in members:
            image = resize(normalized(cam, normalization), size)
            if revive and is_dead(cam):
                own = own_prototypes(row, label, cam, image, prototypes)
                paid = paid + weight * row[c] * nearest(cosine, resize(cam, size), own)[0]
            else:
                share = share + weight * row[c]
                mean = mean + weight * row[c] * image
        if share:
            paid = paid + share * nearest(DISTANCES[distance], mean / share, prototypes[c])[0]
        losses.append(paid / total)
    return losses


def contrastive_losses(cams, labels, prototypes, temperature=0.1, seen=None):
    """−Σ_c w_c log softmax_c max_p(unit(C − mean C) · unit(P_cp − mean P) / τ), over the classes that are seen."""
    losses, seen = [], [True] * len(prototypes) if seen is None else seen.tolist()
    prototypes = [own for own, s in zip(sized(prototypes, prototypes.shape[2:]), seen, strict=True) if s]
    every = [each for own in prototypes for each in own]
    common = sum(every) / len(every)
    for cam, row, _ in _samples(cams, labels, len(seen)):
        if row is None:
            losses.append(None)
            continue
        row = [w for w, s in zip(row, seen, strict=True) if s]
        image = resize(cam, common.shape)
        image = image - image.mean()
        logits = [max(1 - cosine(image, each - common) for each in own) / temperature for own in prototypes]
        normalizer = sum(logit.exp() for logit in logits).log()
        losses.append(sum(w / sum(row) * (normalizer - logit) for w, logit in zip(row, logits, strict=True)))
    return losses


def image_losses(cams, images, distance="l2", revive=True):
    """D(M_i, x_i): each image is the prototype of its own class."""
    labels = torch.arange(len(cams))
    return prototype_losses(cams, labels, images, distance, revive)


def foreground_losses(cams, labels, prototypes, normalization="none"):
    """Σ ((1 − F) C)², or Σ (1 − F) |C| / Σ |C|; F the largest over p, added up over several labels."""
    losses = []
    shape = cams.shape[2:]
    unions = [torch.stack([resize(each, shape) for each in own]).amax(0) for own in prototypes]
    for cam, row, _ in _samples(cams, labels, len(prototypes)):
        if row is None:
            losses.append(None)
            continue
        foreground = sum(w / max(row) * union for w, union in zip(row, unions, strict=True)).clamp(max=1)
        squares, outside, everything = 0.0, 0.0, 0.0
        for f, value in zip(foreground.flatten(), cam.flatten(), strict=True):
            squares = squares + ((1 - f) * value) ** 2
            outside, everything = outside + (1 - f) * value.abs(), everything + value.abs()
        if normalization == "none":
            losses.append(squares)
        else:
            losses.append(outside / everything if everything > 0 else 0 * everything)
    return losses


def at_peak(mask, size):
    """A mask at another size, with the peak it had."""
    resized = resize(mask, size)
    return resized if resized.shape == mask.shape else resized * mask.max() / resized.max()


def mask_losses(kind, cams, masks, revive=True):
    """energy, rrr_cam, gradia or hint; None where the mask is empty."""
    losses = []
    for cam, mask in zip(cams[:, 0], masks[:, 0], strict=True):
        if not mask.any():
            losses.append(None)
            continue
        image, mask = normalized(cam), at_peak(mask, cam.shape)
        if revive and is_dead(cam):
            losses.append(cosine(cam, mask))
            continue
        pairs = list(zip(image.flatten(), mask.flatten(), strict=True))
        if kind == "energy":
            inside, total = sum(m * v for v, m in pairs), sum(v for v, _ in pairs)
            losses.append(1 - inside / total if total > 0 else 1 + 0 * total)
        elif kind == "rrr_cam":
            losses.append(sum(((1 - m) * v) ** 2 for v, m in pairs))
        elif kind == "gradia":
            losses.append(sum((v - m).abs() for v, m in pairs) / len(pairs))
        else:
            losses.append(sum((v - m) ** 2 for v, m in pairs) / len(pairs))
    return losses


def separability_losses(cams, threshold=0.5, sharpness=10.0, revive=True):
    """2 Σ min(M_y, M_c) T / Σ (M_y + M_c), T = 1 / (1 + exp(−ω (M_y − σ)))."""
    losses = []
    for of_label, of_confused in cams:
        label, confused = normalized(of_label), normalized(of_confused)
        if revive and is_dead(of_label):
            losses.append(cosine(of_label, torch.ones_like(of_label)))
            continue
        sigma = threshold * label.max()
        overlap, total = 0 * cams.sum(), 0 * cams.sum()
        for a, b in zip(label.flatten(), confused.flatten(), strict=True):
            overlap = overlap + min(a, b) / (1 + (-sharpness * (a - sigma)).exp())
            total = total + a + b
        losses.append(2 * overlap / total if total > 0 else total)
    return losses


def total_variation_losses(cams, revive=True):
    """Σ_d mean |M[p + e_d] − M[p]|."""
    losses = []
    for cam in cams[:, 0]:
        if revive and is_dead(cam):
            losses.append(cosine(cam, torch.ones_like(cam)))
            continue
        image, total = normalized(cam), 0 * cams.sum()
        for d, side in enumerate(image.shape):
            steps = [(image.select(d, i + 1) - image.select(d, i)).abs().mean() for i in range(side - 1)]
            total = total + sum(steps) / len(steps)
        losses.append(total)
    return losses


def consistency_losses(cams, transform="hflip"):
    """mean (C(Tx) − T C(x))², a pixel at a time: where each pixel of the second view was in the first."""
    height, width = cams.shape[2:]
    flipped = transform == "hflip"  # otherwise a quarter turn of square maps to the left
    half, losses = len(cams) // 2, []
    for first, second in zip(cams[:half, 0], cams[half:, 0], strict=True):
        first, second = (c / c.abs().max() if c.abs().max() > 0 else 0 * c for c in (first, second))
        squares = [
            (second[i, j] - first[(i if flipped else j), width - 1 - (j if flipped else i)]) ** 2
            for i in range(height)
            for j in range(width)
        ]
        losses.append(sum(squares) / len(squares))
    return losses


def reduced(losses, reduction, weights=None):
    """A list with None for what does not count, reduced as the losses do it: the mean is Σ w l / Σ w."""
    weights = [1.0] * len(losses) if weights is None else weights
    kept = [(w, loss) for w, loss in zip(weights, losses, strict=True) if loss is not None]
    if reduction == "none":
        zero = 0 * kept[0][1]
        return torch.stack(
            [zero if loss is None else w * loss for w, loss in zip(weights, losses, strict=True)]
        )
    total = sum(w * loss for w, loss in kept)
    return total / sum(w for w, _ in kept) if reduction == "mean" else total


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


def confused_scores(scores, labels):
    """The highest score of a class other than the label's; of soft labels, other than those of the largest weight."""
    selected = []
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        weights = label if isinstance(label, list) else [float(c == label) for c in range(len(row))]
        named = {c for c, weight in enumerate(weights) if weight == max(weights)} if any(weights) else set()
        others = [score for c, score in enumerate(row) if c not in named]
        selected.append(max(others or row))
    return torch.tensor(selected, dtype=torch.float64)
