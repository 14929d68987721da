"""Small files in the layouts of data sets."""

import struct

import torch


def write_idx(folder, *, train=40, test=20, seed=0):
    """The four files of MNIST with random content."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for name, count in (("train", train), ("t10k", test)):
        images = torch.randint(256, (count, 28, 28), dtype=torch.uint8, generator=generator)
        labels = torch.arange(count, dtype=torch.uint8) % 10
        header = struct.pack(">iiii", 2051, count, 28, 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">ii", 2049, count) + labels.numpy().tobytes()
        )
