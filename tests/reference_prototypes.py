"""The slow twins of prototypes: loops over samples, classes and pixels, in float64."""

from __future__ import annotations

import torch

from tests.reference import is_dead, normalized


def running_means(batches, num_classes, momentum):
    """Return the running means over batches of (cams, rows of label weights, sample weights), None for a class never alive."""
    means = [None] * num_classes
    for cams, rows, importance in batches:
        for c in range(num_classes):
            total, weight = 0, 0
            for cam, row, s in zip(cams[:, 0].double(), rows, importance, strict=True):
                if row is None or is_dead(cam) or not torch.isfinite(cam).all():
                    continue
                total = total + s * row[c] * normalized(cam)
                weight += s * row[c]
            if weight > 0:
                new = total / weight
                means[c] = new if means[c] is None else momentum * means[c] + (1 - momentum) * new
    return means


def lloyd(images, labels, start, iterations):
    """k-means of each class: images (N, *spatial), start (K, P, *spatial) -> centers (K, P, *spatial)."""
    centers = [[p.double() for p in of_class] for of_class in start]
    for _ in range(iterations):
        members = [[[] for _ in of_class] for of_class in centers]
        for image, label in zip(images.double(), labels.tolist(), strict=True):
            if label < 0:
                continue
            distances = [float(((image - center) ** 2).sum()) for center in centers[label]]
            members[label][distances.index(min(distances))].append(image)
        centers = [
            [sum(own) / len(own) if own else old for own, old in zip(owns, olds, strict=True)]
            for owns, olds in zip(members, centers, strict=True)
        ]
    return torch.stack([torch.stack(of_class) for of_class in centers])


def box_mask(boxes, image_size, size, fine):
    """Count points in the union of boxes whose corners lie on a grid `fine` times finer than the pixels of mask and image."""
    (height, width), (h, w) = image_size, size
    canvas = torch.zeros(h * fine, w * fine, dtype=torch.float64)
    for x1, y1, x2, y2 in boxes:
        for row in range(h * fine):
            for column in range(w * fine):
                x, y = (column + 0.5) * width / (w * fine), (row + 0.5) * height / (h * fine)
                if x1 <= x < x2 and y1 <= y < y2:
                    canvas[row, column] = 1
    return torch.stack(
        [
            torch.stack(
                [canvas[i * fine : (i + 1) * fine, j * fine : (j + 1) * fine].mean() for j in range(w)]
            )
            for i in range(h)
        ]
    )


def foregrounds(images, labels, num_classes, lit=0.3, share=0.35, dilate=2):
    """Return the pixels lit in more than a share of a class's images, and their neighbors: (N, h, w) -> (K, h, w) booleans."""
    _, h, w = images.shape
    result = torch.zeros(num_classes, h, w, dtype=torch.bool)
    for c in range(num_classes):
        own = [image for image, label in zip(images, labels.tolist(), strict=True) if label == c]
        for i in range(h):
            for j in range(w):
                if own and sum(bool(image[i, j] > lit) for image in own) > share * len(own):
                    result[c, max(0, i - dilate) : i + dilate + 1, max(0, j - dilate) : j + dilate + 1] = True
    return result
