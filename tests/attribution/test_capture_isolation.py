"""A capture sees the one forward it is meant for: not attribute()'s, not other threads', not those of a copied model."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from batchcam_captum import BatchGradCam, LayerCapture
from tests.attribution.test_capture import cams_from
from tests.models import SmallCnn


@pytest.mark.parametrize("position", ["before", "after"])
def test_forwards_of_attribute_inside_the_block_are_ignored(position: str) -> None:
    model = SmallCnn()
    images, others = torch.randn(2, 3, 9, 9), torch.randn(4, 3, 9, 9)
    attribution = BatchGradCam(model, model.layer)
    expected = attribution.attribute(others, 1)
    with LayerCapture(model.layer) as capture:
        if position == "before":
            cams = attribution.attribute(others, 1)
        scores = model(images)
        if position == "after":
            cams = attribution.attribute(others, 1)
            with pytest.raises(ValueError, match="target"):
                attribution.attribute(others, 99)
    assert capture.activations.equal(model.layer(model.stem(images)))
    assert cams.equal(expected)
    assert cams_from(capture, scores, 1)[0].shape == (2, 1, 4, 4)


@pytest.mark.parametrize("with_own", [False, True], ids=["alone", "beside_the_own_forward"])
def test_forwards_of_other_threads_are_ignored(with_own: bool) -> None:
    model = SmallCnn()
    images = torch.randn(2, 3, 9, 9)
    with LayerCapture(model.layer) as capture:
        if with_own:
            model(images)
        thread = threading.Thread(target=lambda: [model(torch.randn(5, 3, 9, 9)) for _ in range(2)])
        thread.start()
        thread.join()
    if with_own:
        assert len(capture.activations) == 2
    else:
        with pytest.raises(RuntimeError, match="got none"):
            _ = capture.activations


def test_the_workers_of_data_parallel_are_no_other_threads() -> None:
    model = SmallCnn()
    model.layer._is_replica = True  # what DataParallel sets on a replica, which shares the hooks
    with LayerCapture(model.layer) as capture:
        thread = threading.Thread(target=lambda: model(torch.randn(5, 3, 9, 9)))
        thread.start()
        thread.join()
    assert len(capture.activations) == 5


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def through_torch(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, through_pickle, through_torch]


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("as_replica", [False, True], ids=["module", "replica"])
def test_a_model_copied_while_a_capture_is_open_is_not_watched(
    copied: Callable[[Any], Any], as_replica: bool
) -> None:
    model = SmallCnn()
    images = torch.randn(2, 3, 9, 9)
    with LayerCapture(model.layer) as capture:
        scores = model(images)
        twin = copied(model)
        if as_replica:
            twin.layer._is_replica = True
        for _ in range(3):
            assert twin(images).equal(scores)
    assert capture.activations.equal(model.layer(model.stem(images)))
    assert as_replica or not twin.layer._forward_hooks


@pytest.mark.parametrize("copied", COPIES)
def test_a_held_capture_can_be_copied_and_the_copy_is_empty(copied: Callable[[Any], Any]) -> None:
    model = SmallCnn()
    with LayerCapture(model.layer) as capture:
        model(torch.randn(2, 3, 9, 9))
    twin = copied(capture)
    assert len(capture.activations) == 2
    with pytest.raises(RuntimeError, match="got none"):
        _ = twin.activations
