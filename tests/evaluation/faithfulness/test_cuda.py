"""The measures on a GPU give what they give on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum import BatchGradCam
from batchcam_captum.evaluation import faithfulness
from tests.models import SmallCnn

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

MEASURES = {
    "insertion": lambda *given: faithfulness.insertion_curve(*given, steps=8)[:2],
    "deletion": lambda *given: faithfulness.deletion_curve(*given, steps=8, fill="mean")[:2],
    "road": lambda *given: faithfulness.road(*given, noise=0.1)[:3],
    "infidelity": lambda *given: [faithfulness.infidelity(*given, relative=True)],
}


@pytest.fixture(scope="module")
def pair():
    """A model in float64 on the CPU, the same on the GPU, images and cams on the CPU."""
    torch.manual_seed(3)
    model = SmallCnn().double().eval()
    images = torch.rand(3, 3, 10, 12, dtype=torch.float64)
    cams = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    return model, copy.deepcopy(model).cuda(), images, cams


@pytest.mark.parametrize("name", MEASURES)
def test_measures_equal_those_of_the_cpu(name, pair):
    on_cpu, on_gpu, images, cams = pair
    expected = MEASURES[name](on_cpu, images, cams, [1, 4, 0])
    # Cams and targets may stay where they are.
    found = MEASURES[name](on_gpu, images.cuda(), cams, [1, 4, 0])
    for values, reference in zip(found, expected, strict=True):
        assert values.is_cuda
        assert_close(values.cpu(), reference, atol=1e-6, rtol=1e-6)


def test_sensitivity_equals_that_of_the_cpu(pair):
    on_cpu, on_gpu, images, _ = pair
    expected = faithfulness.max_sensitivity(BatchGradCam(on_cpu, "layer"), images, 1)
    found = faithfulness.max_sensitivity(BatchGradCam(on_gpu, "layer"), images.cuda(), 1)
    assert_close(found.values.cpu(), expected.values, atol=1e-6, rtol=1e-6)


def test_cascade_leaves_the_random_states_of_the_gpu(pair):
    _, on_gpu, images, _ = pair
    before = copy.deepcopy(on_gpu.state_dict()), torch.cuda.get_rng_state(), torch.get_rng_state()
    call = [
        faithfulness.cascading_randomization(BatchGradCam(on_gpu, "layer"), images.cuda(), 1, layers=2)
        for _ in range(2)
    ]
    assert call[0].layers == ["head", "tail.1"]
    assert_close(call[0].similarities, call[1].similarities)
    assert_close(on_gpu.state_dict(), before[0], rtol=0, atol=0)
    assert torch.equal(torch.cuda.get_rng_state(), before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
