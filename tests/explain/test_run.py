"""explain_dataset: what the store holds, and what happens when something is wrong."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from batchcam_captum import BatchGradCam
from batchcam_captum.explain import OtherSettingsError, Thumbnails, explain_dataset, open_store, write_report
from batchcam_captum.explain.layout import Status
from batchcam_captum.explain.sources import ImageFiles, list_folder
from batchcam_captum.functional import energy_in_mask, pointing_game, resize
from batchcam_captum.loading import Preprocessing
from tests.explain.stores import files
from tests.models import SmallCnn

COUNT, BATCH = 530, 8  # three chunks of 256, the last one and its last batch not whole
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
OPTIONS: dict[str, Any] = {"thumbnails": Thumbnails(mean=MEAN, std=STD), "class_names": "abcde"}


class Samples(Dataset[Any]):
    """Random images with labels and masks, some of them damaged; what was read is counted."""

    def __init__(self, count: int = COUNT, damaged: tuple[int, ...] = (), stop_at: int | None = None) -> None:
        draw = torch.Generator().manual_seed(0)
        pictures = torch.rand(count, 3, 16, 14, generator=draw)
        self.pictures = pictures
        self.images = (pictures - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        self.labels = torch.arange(count) % 5
        self.masks = (pictures.mean(1, keepdim=True) > 0.5).float()
        self.damaged, self.stop_at = damaged, stop_at
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        self.read.append(index)
        if self.stop_at is not None and index >= self.stop_at:
            raise KeyboardInterrupt
        if index in self.damaged:
            raise OSError(f"image file {index} is truncated")
        return self.images[index], self.labels[index], self.masks[index]


def small_model() -> SmallCnn:
    torch.manual_seed(3)
    return SmallCnn().eval()


def loader(dataset: Dataset[Any], **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, **({"batch_size": BATCH} | options))


def explained(folder: Path, dataset: Dataset[Any] | None = None, **options: Any) -> Any:
    model = options.pop("model", None) or small_model()
    dataset = Samples() if dataset is None else dataset
    return explain_dataset(model, "layer", loader(dataset), folder / "store.zarr", **options)


def digest(store: Any) -> dict[str, bytes]:
    """Return the content of all files but locks."""
    return files(Path(store.path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return explained(tmp_path_factory.mktemp("whole"), **OPTIONS)


def test_a_store_has_what_attribute_gives(whole):
    data, model = Samples(), small_model()
    cams, scores = BatchGradCam(model, model.layer).attribute_with_scores(
        data.images, target=lambda scores: scores.amax(1)
    )
    assert whole.complete
    assert list(whole.written()) == list(range(COUNT))
    assert whole.maps.dtype == "float32"
    assert_close(torch.from_numpy(whole.maps[:]), cams, rtol=1e-5, atol=1e-7)
    assert_close(torch.from_numpy(whole.scores[:]), scores, rtol=1e-5, atol=1e-7)
    assert np.array_equal(whole.predictions[:], scores.argmax(1))
    assert np.array_equal(whole.targets[:, 0], scores.argmax(1))
    assert_close(torch.from_numpy(whole.confidences[:]), scores.softmax(1).amax(1), rtol=1e-5, atol=1e-7)
    assert np.array_equal(whole.labels[:], data.labels)
    assert list(whole.ids[:3]) == ["0", "1", "2"]
    assert set(whole.paths[:]) == {""}
    assert whole.class_names == tuple("abcde")
    assert whole.settings["layer"] == "layer"


def test_metrics_of_the_masks(whole):
    data, maps = Samples(), torch.from_numpy(whole.maps[:])
    for metric in (energy_in_mask, pointing_game):
        found = torch.from_numpy(whole.metrics[metric.__name__][:, 0])
        assert_close(found, metric(maps, data.masks).float())


def test_thumbnails_are_the_images_without_standardization_at_most_as_large(tmp_path, whole):
    small = explained(tmp_path, Samples(10), thumbnails=Thumbnails(8, MEAN, STD))
    for store, size in ((whole, (16, 14)), (small, (8, 7))):
        expected = torch.nn.functional.interpolate(Samples(len(store)).pictures, size, mode="area") * 255
        thumbnails = torch.from_numpy(store.thumbnails[:]).float().permute(0, 3, 1, 2)
        assert_close(thumbnails, expected, atol=0.51, rtol=0)
    assert explained(tmp_path / "none", Samples(10), thumbnails=None).thumbnails is None


@pytest.mark.parametrize(
    ("targets", "classes"),
    [
        ("true", lambda data, scores: data.labels[:, None]),
        ("all", lambda data, scores: torch.arange(5).expand(len(scores), 5)),
        (2, lambda data, scores: scores.topk(2).indices),
        ([4, 1], lambda data, scores: torch.tensor([4, 1]).expand(len(scores), 2)),
    ],
    ids=["true", "all", "top", "classes"],
)
def test_the_classes_that_are_asked_for(tmp_path, targets, classes):
    data, model = Samples(20), small_model()
    expected = classes(data, model(data.images))
    store = explained(tmp_path, data, targets=targets)
    assert np.array_equal(store.targets[:], expected)
    cams = BatchGradCam(model, model.layer).attribute_classes(data.images, expected)
    assert_close(torch.from_numpy(store.maps[:]), cams, rtol=1e-5, atol=1e-7)
    assert store.metrics["energy_in_mask"].shape == expected.shape


def test_maps_as_large_as_the_images_in_half_precision(tmp_path):
    data, model = Samples(9), small_model()
    store = explained(tmp_path, data, size="input", dtype="float16", targets="true")
    cams = BatchGradCam(model, model.layer).attribute(data.images, target=data.labels)
    assert store.maps.dtype == "float16"
    assert_close(torch.from_numpy(store.maps[:]).float(), resize(cams, (16, 14)), rtol=1e-3, atol=1e-6)


def test_half_precision_says_where_it_is_not_enough(tmp_path):
    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.inner, self.factor = small_model(), factor
            self.layer = self.inner.layer

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images) * self.factor

    with pytest.raises(ValueError, match="dtype"):
        explained(tmp_path / "large", Samples(9), model=Scaled(1e9).eval(), dtype="float16")
    assert not open_store(tmp_path / "large" / "store.zarr").about["chunks"]
    with pytest.warns(UserWarning, match=r"9 samples .* float16"):
        explained(tmp_path / "small", Samples(9), model=Scaled(1e-6).eval(), dtype="float16")


def damaged_in(store: Any) -> list[int]:
    return list(np.flatnonzero(store.status[:] == Status.DAMAGED))


def test_damaged_samples_are_listed_and_do_not_end_the_run(tmp_path, whole):
    damaged = [0, 17, *range(256, 272), COUNT - 1]
    store = explained(tmp_path, Samples(damaged=tuple(damaged)), **OPTIONS)
    assert store.complete
    assert damaged_in(store) == damaged
    assert store.frame().problem[17] == "image file 17 is truncated"
    assert np.isnan(store.maps[17]).all()
    rest = store.written()
    # A batch of another size may be rounded in another way.
    assert_close(store.maps[:][rest], whole.maps[:][rest], rtol=1e-5, atol=1e-7)


def test_no_sample_that_can_be_read(tmp_path):
    with pytest.raises(ValueError, match="none of 6; sample 0: image file 0"):
        explained(tmp_path, Samples(6, damaged=tuple(range(6))))
    assert not any(tmp_path.iterdir())


class Unmounted(Samples):
    """From a position on, the file system raises this error."""

    def __init__(self, count: int, start: int, number: int) -> None:
        super().__init__(count)
        self.start, self.number = start, number

    def __getitem__(self, index: int) -> Any:
        if index >= self.start:
            raise OSError(self.number, os.strerror(self.number), f"{index}.png")
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EIO, "loader: .*300.png"),
        (errno.ESTALE, "loader: .*300.png"),
        (errno.EMFILE, "loader: .*300.png"),
        (errno.ENOENT, "100 in a row .*399.png.*max_missing"),
    ],
)
def test_a_file_system_that_fails_damages_no_sample(tmp_path, whole, number, said):
    with pytest.raises(OSError, match=said):
        explained(tmp_path, Unmounted(COUNT, 300, number), **OPTIONS)
    store = open_store(tmp_path / "store.zarr")
    assert list(store.status[:]) == [Status.WRITTEN] * 256 + [Status.MISSING] * (COUNT - 256)
    assert digest(explained(tmp_path, **OPTIONS)) == digest(whole)


def test_an_outage_damages_no_chunk_that_was_written_before_it_showed(tmp_path, whole):
    with pytest.raises(OSError, match="100 in a row"):
        explained(tmp_path, Unmounted(COUNT, 200, errno.ENOENT), **OPTIONS)
    assert set(open_store(tmp_path / "store.zarr").status[:]) == {Status.MISSING}
    with pytest.raises(OSError, match="3 in a row"):
        explained(tmp_path / "none", Unmounted(9, 0, errno.EACCES), max_missing=3)
    assert digest(explained(tmp_path, **OPTIONS)) == digest(whole)


def test_errors_of_the_file_system_in_workers_keep_their_number(tmp_path):
    batches = loader(Unmounted(20, 8, errno.ESTALE), num_workers=1)
    with pytest.raises(OSError, match=r"8\.png") as caught:
        explain_dataset(small_model(), "layer", batches, tmp_path / "store.zarr")
    assert caught.value.errno == errno.ESTALE


def test_damaged_samples_are_tried_again_when_asked(tmp_path, whole):
    gone = Unmounted(COUNT, 500, errno.ENOENT)
    assert len(damaged_in(explained(tmp_path, gone, max_missing=None, **OPTIONS))) == 30
    assert len(damaged_in(explained(tmp_path, **OPTIONS))) == 30
    data = Samples()
    store = explained(tmp_path, data, retry_damaged=True, **OPTIONS)
    assert data.read == [0, *range(256, COUNT)]
    assert digest(store) == digest(whole)


def test_the_image_that_tells_the_others_may_be_gone_or_mended_later(tmp_path):
    before = digest(explained(tmp_path / "gone", Samples(20)))
    assert digest(explained(tmp_path / "gone", Samples(20, damaged=(0,)))) == before
    explained(tmp_path / "mended", Samples(20, damaged=(0, 1)))
    store = explained(tmp_path / "mended", Samples(20), retry_damaged=True)
    assert (damaged_in(store), store.settings["example"]["position"]) == ([], 2)


def test_an_interrupted_run_resumes_where_it_stopped(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        explained(tmp_path, Samples(stop_at=300), **OPTIONS)
    store = open_store(tmp_path / "store.zarr")
    assert not store.complete
    assert list(store.written()) == list(range(256))
    data = Samples()
    store = explained(tmp_path, data, **OPTIONS)
    assert data.read == [0, *range(256, COUNT)]  # the first one tells the sizes
    assert digest(store) == digest(whole)
    (Path(store.path) / "scores" / "c.1.0").unlink()  # lost in a copy
    data = Samples()
    assert digest(explained(tmp_path, data, **OPTIONS)) == digest(whole)
    assert data.read == [0, *range(256, 512)]


class Slow(Samples):
    def __getitem__(self, index: int) -> Any:
        time.sleep(0.003)
        return super().__getitem__(index)


def explain_slowly(path: Path) -> None:
    torch.set_num_threads(1)
    explain_dataset(small_model(), "layer", loader(Slow(), num_workers=1), path, **OPTIONS)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_runs_that_are_killed_at_random_end_in_the_same_bytes(tmp_path, whole):
    """Their workers may live a little longer."""
    path, draw = tmp_path / "store.zarr", random.Random(0)
    for chunks in (0, 0, 1):
        process = multiprocessing.get_context("fork").Process(target=explain_slowly, args=(path,))
        process.start()
        try:
            while not (path / "zarr.json").exists() or len(open_store(path).about["chunks"]) < chunks:
                assert process.is_alive()
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.4))
        finally:
            process.kill()
            process.join()
        assert process.exitcode == -signal.SIGKILL
    assert digest(explained(tmp_path, **OPTIONS)) == digest(whole)


def test_several_processes_write_one_store(tmp_path, whole, monkeypatch):
    def of_rank(rank: int, world_size: int, dataset: Dataset[Any] | None = None) -> Any:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        return explained(tmp_path, dataset, **OPTIONS)

    with pytest.raises(KeyboardInterrupt):  # one dies
        of_rank(0, 2, Samples(stop_at=520))
    store = of_rank(1, 2)
    assert not store.complete
    assert list(store.written()) == list(range(512))
    assert digest(of_rank(2, 3)) == digest(whole)
    with pytest.raises(ValueError, match="RANK: expected 0 to 1"):
        of_rank(2, 2)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="overwrite"):
        explained(tmp_path, overwrite=True)


def test_other_settings_are_refused_and_named(tmp_path):
    explained(tmp_path, Samples(9), about={"checkpoint": "a.pt"})
    for options, message in [
        ({"targets": 2}, "targets = 'predicted' there, 'top 2' here"),
        ({"method": "hires_cam"}, "method = 'grad_cam' there, 'hires_cam' here"),
        ({"model": SmallCnn().eval()}, "model.sha256 = '"),
        ({"about": {"checkpoint": "b.pt"}}, "about.checkpoint = 'a.pt' there, 'b.pt' here"),
        ({"dataset": Samples(10)}, "samples = 9 there, 10 here"),
        ({"dataset": TensorDataset(torch.rand(9, 3, 16, 14))}, "example.sha256 = "),
        ({"output": lambda scores: scores}, "output = None there, 'tests.explain"),
    ]:
        given = {"dataset": Samples(9), "about": {"checkpoint": "a.pt"}} | options
        with pytest.raises(OtherSettingsError, match=message):
            explained(tmp_path, given.pop("dataset"), **given)
    data = Samples(9)
    assert explained(tmp_path, data, targets=2, overwrite=True).settings["targets"] == "top 2"
    assert len(data.read) == 10


def test_workers_read_the_same(tmp_path, whole):
    batches = loader(Samples(), num_workers=2)
    store = explain_dataset(small_model(), "layer", batches, tmp_path / "store.zarr", **OPTIONS)
    assert digest(store) == digest(whole)


def test_nothing_else_changes(tmp_path):
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    explain_dataset(model, model.layer, loader(Samples(20), num_workers=1), tmp_path / "store.zarr")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_paths_come_from_the_data_set(tmp_path):
    class Folder(Samples):
        samples = [(f"{number}.png", 0) for number in range(9)]  # noqa: RUF012

    assert list(explained(tmp_path, Subset(Folder(9), [4, 2])).paths[:]) == ["4.png", "2.png"]
    data = Folder(9)
    data.paths, data.ids = list("abcdefghi"), list("123456789")
    store = explained(tmp_path / "own", data)
    assert "".join(store.paths[:]) == "abcdefghi"
    assert "".join(store.ids[:]) == "123456789"
    data.ids = ["a"]
    with pytest.raises(ValueError, match="ids: expected 9"):
        explained(tmp_path / "short", data)


def test_labels_that_changed_are_refused(tmp_path):
    images = torch.rand(9, 3, 16, 14)
    explained(tmp_path, Subset(TensorDataset(images, torch.arange(9)), range(1, 9)))
    explained(tmp_path, TensorDataset(images[1:], torch.arange(1, 9)))
    with pytest.raises(OtherSettingsError, match="labels = '"):
        explained(tmp_path, TensorDataset(images[1:], torch.arange(8)))


def test_image_files_bring_their_names(tmp_path):
    images = pytest.importorskip("PIL.Image")
    for name in "abcde":
        (tmp_path / "data" / name).mkdir(parents=True)
        images.new("RGB", (14, 16)).save(tmp_path / "data" / name / "one.png")
    files = ImageFiles(list_folder(tmp_path / "data"), Preprocessing(size=(16, 14), crop=0.875))
    store = explained(tmp_path, Subset(files, [3, 1]))
    assert list(store.ids[:]) == ["d/one.png", "b/one.png"]
    assert list(store.paths[:]) == [str(tmp_path / "data" / name / "one.png") for name in "db"]
    assert list(store.labels[:]) == [3, 1]
    assert store.class_names == tuple("abcde")


def test_scores_of_nan_predict_no_class(tmp_path):
    data = Samples(9)
    data.images[4] = float("nan")
    for targets in ("predicted", 2):
        store = explained(tmp_path / str(targets), data, targets=targets)
        assert store.complete
        assert store.status[4] == 1
        assert store.predictions[4] == -1
        assert np.isnan(store.confidences[4])
        assert set(store.targets[4]) == {-1}
        assert np.isnan(store.maps[4]).all()
        others = np.delete(np.arange(9), 4)
        assert (store.predictions[:][others] >= 0).all()
        assert np.isfinite(store.maps[:][others]).all()


def test_models_that_return_more_than_scores(tmp_path):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_model()

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"features": images, "logits": self.inner(images)}

    with pytest.raises(TypeError, match=r"features.*logits"):
        explain_dataset(Named().eval(), "inner.layer", loader(Samples(9)), tmp_path / "store.zarr")
    store = explain_dataset(
        Named().eval(), "inner.layer", loader(Samples(9)), tmp_path / "store.zarr", output="logits"
    )
    assert np.array_equal(store.scores[:], explained(tmp_path / "plain", Samples(9)).scores[:])
    assert store.settings["output"] == "logits"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_in_another_precision_gets_its_images_in_it(tmp_path, dtype):
    expected = explained(tmp_path / "plain", Samples(9))
    store = explained(tmp_path, Samples(9), model=small_model().to(dtype))
    assert_close(store.maps[:], expected.maps[:], rtol=0, atol=0.02 * float(np.abs(expected.maps[:]).max()))
    assert store.settings["example"] == expected.settings["example"]


def test_signals_have_maps_too(tmp_path):
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8, 3)).eval()
    data = TensorDataset(torch.rand(7, 2, 10))
    store = explain_dataset(model, "1", loader(data), tmp_path / "store.zarr")
    assert store.maps.shape == (7, 1, 8)
    assert store.thumbnails is None
    assert set(store.labels[:]) == {-1}
    assert store.frame().correct.isna().all()
    with pytest.raises(ValueError, match="two spatial dimensions"):
        write_report(store, tmp_path / "report.html")


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter(torch.rand(3, 3, 16, 14))


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (DataLoader(Samples(9), batch_size=2, shuffle=True), ValueError),
        (DataLoader(Samples(9), batch_size=None), ValueError),
        (DataLoader(Samples(9), batch_size=10**9), ValueError),  # gigabytes of maps
        (DataLoader(Subset(Samples(9), [])), ValueError),
        (DataLoader(Stream(), batch_size=2), TypeError),
        (Samples(9), TypeError),
    ],
)
def test_loaders_whose_runs_could_not_be_resumed(tmp_path, given, kind):
    with pytest.raises(kind, match="loader"):
        explain_dataset(small_model(), "layer", given, tmp_path / "store.zarr")
    assert not any(tmp_path.iterdir())


def test_models_that_do_not_fit(tmp_path):
    def of(head: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), head).eval()

    class Pair(nn.Module):
        def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
            return values.flatten(1), values.flatten(1)

    for model, message in [
        (of(nn.Flatten(0)), r"model: .*\(4,\)"),
        (of(nn.Identity()), r"model: .*\(1, 4, 1, 1\)"),
        (of(Pair()), "tensor"),
        (of(nn.Sequential(nn.Flatten(), nn.Linear(4, 1))), "model: .*2 classes"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()).eval(), r"model: .*\(N, 3, 16, 14\)"),
        (small_model().train(), "model: .*eval"),
    ]:
        layer = "layer" if hasattr(model, "layer") else "1"
        with pytest.raises((ValueError, TypeError), match=message):
            explain_dataset(model, layer, loader(Samples(9)), tmp_path / "store.zarr")
    assert not any(tmp_path.iterdir())


def test_labels_and_masks_that_are_none(tmp_path):
    images = torch.rand(9, 3, 16, 14)
    unknown = torch.zeros(9, dtype=torch.long)
    for rest, message in [
        ([torch.eye(9)], "labels"),
        ([torch.zeros(9)], "labels"),
        ([unknown, torch.ones(9, 16, 14)], "masks"),
    ]:
        with pytest.raises(ValueError, match=message):
            explained(tmp_path, TensorDataset(images, *rest))
    positions = TensorDataset(images, unknown, torch.arange(9))
    assert explained(tmp_path, positions).metrics == {}


def test_images_of_several_sizes(tmp_path):
    class Sizes(Samples):
        def __getitem__(self, index: int) -> Any:
            image, label, _ = super().__getitem__(index)
            return image[:, : 16 - index // self.step], label

    data = Sizes(16)
    data.step = 5
    with pytest.raises(ValueError, match=r"\(3, 15, 14\) and \(3, 16, 14\)"):
        explained(tmp_path, data)
    data.step = 8  # all of one size in each batch
    with pytest.raises(ValueError, match=r"\(3, 15, 14\) in samples 8 to 15"):
        explained(tmp_path / "other", data)


def test_an_unknown_label_explains_no_class(tmp_path):
    data = Samples(20, damaged=(8,))
    data.labels[12] = -1
    with pytest.raises(ValueError, match="as targets is 'true', got -1 for sample 12"):
        explained(tmp_path, data, targets="true")
    assert open_store(explained(tmp_path / "predicted", data).path).labels[12] == -1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "best"}, "targets"),
        ({"targets": 0}, "targets"),
        ({"targets": 6}, "targets: .*at most 5"),
        ({"targets": [5]}, "targets: .*0 to 4"),
        ({"targets": [1, 1]}, "targets"),
        ({"targets": 1.5}, "targets"),
        ({"targets": True}, "targets"),
        ({"targets": [0.5]}, "targets"),
        ({"targets": np.array([7])}, "targets: .*got 7"),
        ({"targets": np.int64(6)}, "targets: .*at most 5"),
        ({"targets": "true", "dataset": TensorDataset(torch.rand(9, 3, 16, 14))}, "targets: .*labels"),
        ({"max_missing": 0}, "max_missing"),
        ({"output": 1.5}, "output"),
        ({"dtype": "float64"}, "dtype"),
        ({"size": "image"}, "size"),
        ({"class_names": "ab"}, "class_names: expected 5"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, options, message):
    dataset = options.pop("dataset", None) or Samples(9)
    with pytest.raises((ValueError, TypeError), match=message):
        explained(tmp_path, dataset, **options)
    assert not any(tmp_path.iterdir())
