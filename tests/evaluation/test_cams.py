"""Cams against prototypes over a data set."""

import pytest
import torch
from torch import nn

from batchcam_captum import BatchGradCam, ClassPrototypes
from batchcam_captum.evaluation import evaluate_cams
from batchcam_captum.functional import ssim


@pytest.fixture
def case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 64, 3)).eval()
    images, labels = torch.randn(10, 1, 8, 8), torch.arange(10) % 3
    prototypes = ClassPrototypes(3)
    prototypes.update(torch.rand(30, 1, 8, 8) ** 2, torch.arange(30) % 3)
    return model, images, labels, prototypes


def test_equals_a_loop_over_samples_whatever_the_batches(case):
    model, images, labels, prototypes = case
    grad_cam = BatchGradCam(model, model[1])
    expected = {key: 0.0 for key in ("accuracy", "l1", "ssim", "cosine", "dead_fraction")}
    for image, label in zip(images, labels, strict=True):
        cam = grad_cam.attribute(image[None], target=int(label))[0, 0]
        dead = cam.max() <= 1e-3 * cam.abs().max()
        m = torch.zeros_like(cam) if dead else cam.clamp(min=0) / cam.max()
        mean = prototypes.values[label, 0]
        p = (mean - mean.min()) / (mean.max() - mean.min())
        expected["accuracy"] += float(model(image[None]).argmax() == label) / 10
        expected["l1"] += float((m - p).abs().mean()) / 10
        expected["cosine"] += 0.0 if dead else float((m * p).sum() / (m.norm() * p.norm())) / 10
        expected["dead_fraction"] += float(dead) / 10
        expected["ssim"] += float(ssim(m[None, None], p[None, None])) / 10
    for size in (10, 3, 1):
        report = evaluate_cams(grad_cam, zip(images.split(size), labels.split(size), strict=True), prototypes)
        assert report.pop("samples") == 10
        assert report == pytest.approx(expected, abs=1e-5)


def test_all_dead_cams_count_as_zero_maps(case):
    model, images, labels, prototypes = case
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(1)
        model[3].weight.fill_(-1)
    report = evaluate_cams(BatchGradCam(model, model[1]), [(images, labels)], prototypes)
    assert report["dead_fraction"] == 1
    assert report["cosine"] == 0
    assert report["l1"] == pytest.approx(prototypes.maps()[labels].mean().item())


def test_empty_loader_is_refused(case):
    model, _, _, prototypes = case
    with pytest.raises(ValueError, match="loader: expected at least one sample"):
        evaluate_cams(BatchGradCam(model, model[1]), [], prototypes)
