"""The table and the title of the figure."""

import pytest
import torch

from batchcam_captum import BatchGradCam, ClassPrototypes
from batchcam_captum.demo.data import DemoData, Images
from batchcam_captum.demo.model import SimpleCNN
from batchcam_captum.demo.report import figure_of_maps, table


def run(accuracy, ratio):
    arm = {
        "accuracy": accuracy,
        "l1": 0.3,
        "ssim": 0.1,
        "cosine": 0.5,
        "dead_fraction": 0.0,
        "seconds_per_step": 0.01,
    }
    return {"cross_entropy": arm, "regularized": {**arm, "l1": 0.1}, "step_ratio": ratio}


def cells(text, row):
    (line,) = [line for line in text.splitlines() if row in line]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_one_seed_gives_the_values():
    text = table([run(0.9876, 1.25)], "+ batch_cam")
    assert cells(text, "accuracy") == ["98.76", "98.76"]
    assert cells(text, "L1") == ["0.300", "0.100"]
    assert cells(text, "milliseconds") == ["10.00", "10.00"]
    assert cells(text, "ratio") == ["1", "1.250"]


def test_several_seeds_give_mean_and_sample_deviation():
    text = table([run(0.90, 1.0), run(0.92, 1.2)], "+ batch_cam")
    assert cells(text, "accuracy")[0] == "91.00 ± 1.41"
    assert cells(text, "ratio")[1] == "1.100 ± 0.141"


@pytest.mark.parametrize(("size", "enlarged"), [(8, False), (28, True)])
def test_titles_say_enlarged_only_where_maps_are_smaller_than_images(size, enlarged):
    model = SimpleCNN(2, size).eval()
    images = Images(torch.rand(4, 1, size, size), torch.tensor([0, 1, 0, 1]))
    data = DemoData(images, images, ("a", "b"), 0.0, 1.0)
    grad_cam = BatchGradCam(model, model.features)
    prototypes = ClassPrototypes.from_loader([(images.images, images.labels)], 2)
    figure = figure_of_maps(data, grad_cam, grad_cam, prototypes, "batch_cam")
    title = figure.get_suptitle()
    assert "relu, divided by the maximum" in title
    assert ("enlarged bilinearly" in title) is enlarged
    assert figure.axes[1].images[0].get_array().shape == (size, size)
