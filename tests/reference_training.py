"""The slow, obvious twins of a regularised training step: a loop over samples, one ``autograd.grad`` each."""

from __future__ import annotations

import torch
from torch import nn

from tests.reference import batch_cam_losses, cam_of, prototype_losses, reduced

K = 3


def exact_maps() -> torch.Tensor:
    """Prototypes (K, 1, 6, 6) that nothing rounds: from 0 to 1 already, of the maps' own size, float32 as they are kept."""
    maps = torch.rand(K, 1, 6, 6, generator=torch.Generator().manual_seed(5))
    least = maps.amin((2, 3), keepdim=True)
    return (maps - least) / (maps.amax((2, 3), keepdim=True) - least)


OF_LOSS = {"batch_cam": batch_cam_losses, "prototype": prototype_losses}


class Parts(nn.Module):
    """What comes before the layer, the layer, and a head that mixes no samples; ``layers`` are all that may be explained."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.layer = nn.Tanh()
        self.middle = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Softplus())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 36, K))

    def forward(self, images):
        return self.head(self.middle(self.layer(self.trunk(images))))


def cross_entropy(scores, labels):
    """−(1/N) Σ log softmax(scores)[label], a sample at a time."""
    losses = [row.exp().sum().log() - row[label] for row, label in zip(scores, labels.tolist(), strict=True)]
    return sum(losses) / len(losses)


def label_score(scores, label):
    return scores[label]


def log_prob_sum(scores, label):
    return sum(score - scores.exp().sum().log() for score in scores)


def sample_cams(model, images, labels, layers=("layer",), score=label_score):
    """Scores (N, K), and for each layer the cams (N, 1, h, w): every sample's own score, differentiated on its own.

    Only what comes before the first layer sees the samples together, as its BatchNorm asks for.
    """
    scores, cams = [], {name: [] for name in layers}
    together = model.layer(model.trunk(images))
    for i, label in enumerate(labels.tolist()):
        at = {"layer": together[i : i + 1]}
        at["middle"] = model.middle(at["layer"])
        own = model.head(at["middle"])[0]
        for name in layers:
            cams[name].append(cam_of(at[name], score(own, label)))
        scores.append(own)
    return torch.stack(scores), {name: torch.cat(of_layer) for name, of_layer in cams.items()}


def terms(model, images, labels, maps, kinds=("batch_cam",), layers=("layer",), distance="l1"):
    """The task loss, and each term by its name: the mean over the layers."""
    scores, cams = sample_cams(model, images, labels, layers)
    found = {}
    for kind in kinds:
        of_layers = [
            reduced(OF_LOSS[kind](cams[name], labels, maps, distance=distance), "mean") for name in layers
        ]
        found[kind] = sum(of_layers) / len(of_layers)
    return cross_entropy(scores, labels), found


def objective(model, images, labels, maps, weight=1.0, **options):
    """Cross-entropy + λ · Σ of the terms."""
    task, found = terms(model, images, labels, maps, **options)
    return task + weight * sum(found.values())


def gradients(loss, model):
    """Of every parameter by its name; zeros where the loss does not reach it."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(named.items(), found, strict=True)
    }
