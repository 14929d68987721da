"""How large is the report of 10,000 samples, and how soon does it show pictures?

Crops of photographs as thumbnails of 64 px, maps of 7×7. The file is opened in a new Chromium with an empty profile. Needs
chromium, chromedriver and the extra `test`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from browser import seen
from common import Report, Spread, Times, parser, start

from batchcam_captum.explain import Store, open_store, write_report
from batchcam_captum.explain.layout import Layout, Status
from batchcam_captum.explain.writing import writing

MEGABYTES, SECONDS = 60, 2
_SAMPLES, _CLASSES, _PIXELS, _CHUNK = 10_000, 100, 64, 250


def made(path: Path, samples: int) -> Store:
    """Write a store of random crops, with maps that are brightest near the center."""
    from PIL import Image
    from skimage import data

    draw = np.random.default_rng(0)
    photographs = [Image.fromarray(each()) for each in (data.astronaut, data.chelsea, data.coffee)]
    layout = Layout(samples, _CHUNK, (1, 7, 7), _CLASSES, thumbnail=(_PIXELS, _PIXELS))
    names = tuple(f"class number {index}" for index in range(_CLASSES))
    settings = {"model": "resnet18", "layer": "layer4", "method": "grad_cam", "targets": "predicted"}
    place = np.arange(7) - 3
    with writing(path, layout, settings=settings, environment={}, class_names=names) as writer:
        for chunk in range(layout.chunks):
            rows = range(samples)[layout.rows(chunk)]
            count = len(rows)
            scores = draw.normal(size=(count, _CLASSES)).astype(np.float32)
            predictions = scores.argmax(1).astype(np.int32)
            y, x = draw.normal(size=(2, count, 1, 1))
            maps = (
                np.exp(-((place[:, None] - y) ** 2 + (place - x) ** 2) / 4)
                + draw.normal(size=(count, 7, 7)) / 9
            )
            columns = {
                "maps": maps[:, None].astype(np.float16),
                "targets": predictions[:, None],
                "scores": scores,
                "predictions": predictions,
                "confidences": draw.random(count, dtype=np.float32),
                "labels": np.where(draw.random(count) < 0.7, predictions, 0).astype(np.int32),
                "ids": np.array([str(row) for row in rows], dtype=object),
                "paths": np.array([f"test/class number {row % _CLASSES}/image {row:06d}.jpg" for row in rows], dtype=object),
                "thumbnails": np.stack([_crop(photographs[row % len(photographs)], draw) for row in rows]),
                "status": np.full(count, Status.WRITTEN, np.uint8),
            }  # fmt: skip
            writer.write(chunk, columns)
    return open_store(path)


def _crop(photograph, draw: np.random.Generator) -> np.ndarray:
    side = int(min(photograph.size) * draw.uniform(0.4, 1))
    left, top = (int(draw.integers(0, length - side + 1)) for length in photograph.size)
    return np.asarray(photograph.resize((_PIXELS, _PIXELS), box=(left, top, left + side, top + side)))


def main() -> None:
    options = start(parser(__doc__, rounds=5))
    samples = 500 if options.quick else _SAMPLES
    report = Report(
        "report_size",
        options,
        "Seconds from the start of the navigation until the pictures in sight are painted, by the page's own clock; Chromium "
        "without a GPU. The empty page shows how long the browser itself takes.",
    )
    with tempfile.TemporaryDirectory() as folder:
        store = made(Path(folder, "store"), samples)
        began = time.perf_counter()
        page = write_report(store, Path(folder, "report.html"))
        writing_took = time.perf_counter() - began
        empty = Path(folder, "empty.html")
        empty.write_text("<!doctype html><title>empty</title><p>empty", encoding="utf-8")
        times = Times({"report": [], "empty page": []})
        for _ in range(options.rounds):
            times.seconds["report"].append(seen(page, pictures=True).seconds)
            times.seconds["empty page"].append(seen(empty, pictures=False).seconds)
        megabytes = page.stat().st_size / 1e6
    case = f"{samples} samples, thumbnails of {_PIXELS} px, maps of 7x7"
    report.add_case(case, times=times, megabytes=megabytes, writing_seconds=writing_took)
    report.add_figure(case, "size, MB", Spread.exact(megabytes), reach=MEGABYTES)
    report.add_figure(case, "first pictures, s", Spread.of(times.seconds["report"]), reach=SECONDS)
    report.add_figure(
        case, "first content of an empty page, s", Spread.of(times.seconds["empty page"]), reach=None
    )
    report.finish()


if __name__ == "__main__":
    main()
