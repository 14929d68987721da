"""``batchcam explain`` on every rank."""

import os
import tempfile
from pathlib import Path

import torch.distributed as dist

from batchcam_captum.cli import main
from batchcam_captum.explain import layout, open_store
from tests.cli.test_explain import MODEL_FILE
from tests.distributed.group import WORLD, Checks
from tests.explain.test_sources import save

CHECKS = Checks()


@CHECKS.each(overwrite=[False, True])
def ranks_share_a_folder(rank, overwrite):
    """Written by all, removed by one, and told by one when all are done."""
    shared = [tempfile.mkdtemp() if rank == 0 else ""]
    dist.broadcast_object_list(shared)
    folder = Path(shared[0])
    if rank == 0:
        (folder / "model.py").write_text(MODEL_FILE)
        for number in range(7):
            save(folder / "images" / f"{number}.png", seed=number)
    dist.barrier()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    usual, layout._CHUNK_SAMPLES = layout._CHUNK_SAMPLES, 2
    images = [
        "--data",
        f"{folder}/images",
        "--size",
        "8",
        "--layer",
        "1",
        "--workers",
        "0",
        "--batch-size",
        "2",
    ]
    command = ["explain", f"{folder}/model.py:make", *images, "--output", f"{folder}/out", "--quiet"]
    try:
        for targets in ("predicted", "all") if overwrite else ("predicted",):
            again = ["--overwrite"] if targets == "all" else []
            assert main([*command, "--targets", targets, *again]) == 0
            # The last wait of the command is for all ranks: whichever comes here finds the others' samples.
            store = open_store(folder / "out")
            assert store.status[:].tolist() == [1] * 7
            assert store.targets.shape == (7, 2 if targets == "all" else 1)
            dist.barrier()
    finally:
        layout._CHUNK_SAMPLES = usual
        del os.environ["RANK"], os.environ["WORLD_SIZE"]
