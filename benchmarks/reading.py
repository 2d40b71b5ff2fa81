"""Images a second from a store, warm, in one run: `python -m benchmarks.reading [--codec int8] [--images 4096]`.

Four teachers of ViT-B's shape at half the width (random features, which cost the same to read), in shuffled batches of
128.

| what | how |
|---|---|
| ours | RowReader: checked rows in the stream's order, one thread |
| stock | zarr-python, one row after the other, nothing checked |
| pread | the same bytes from the same files with os.pread, nothing checked: the limit |
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import zarr

from unic_cache.location import LocalFolder
from unic_cache.store.codec import FeatureCodec
from unic_cache.store.commit import CommitRecord, Unit
from unic_cache.store.layout import Extent
from unic_cache.store.member import Member
from unic_cache.store.reader import RowReader
from unic_cache.store.writer import UnitWriter
from unic_cache.stream import Order
from unic_cache.usable import Rows

TEACHERS, TOKENS, CHANNELS, ROWS, BATCH = 4, 196, 384, 1024, 128
VIEW = "unic-224-0-000"


def write(folder: Path, codec: str, shards: int) -> list[tuple[Member, dict[int, CommitRecord]]]:
    """Four members of random standardized features."""
    made = []
    for number in range(TEACHERS):
        spec = {
            "format": 1, "teacher": {"name": f"t{number}"}, "provenance": {}, "codec": codec,
            "features": {"cls_dim": CHANNELS, "grid": [14, 14], "patch_dim": CHANNELS},
        }  # fmt: skip
        member = Member.ensure(LocalFolder(folder), f"t{number}", spec)
        features = FeatureCodec(codec, CHANNELS, TOKENS, CHANNELS)
        generator = torch.Generator().manual_seed(number)
        tokens = {"cls": torch.randn(ROWS, CHANNELS, generator=generator)}
        tokens["patch"] = torch.randn(ROWS, TOKENS, CHANNELS, generator=generator)
        parts = {name: values.numpy() for name, values in features.encode(tokens).items()}
        records = {}
        for shard in range(shards):
            unit = Unit(0, Extent(shards, ROWS), shard, f"tar{shard}", ROWS, VIEW)
            records[shard] = UnitWriter(member, 0).write(unit, parts, np.zeros(ROWS, np.uint32), {})
        made.append((member, records))
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--images", type=int, default=2048)
    options = parser.parse_args()
    shards = 2
    with tempfile.TemporaryDirectory() as folder:
        members = write(Path(folder), options.codec, shards)
        places = [(0, shard, row) for shard in range(shards) for row in range(ROWS)]
        order = Order(Rows(*np.array(places).T), (0,), 0)
        batches = [order.samples(start, start + BATCH) for start in range(0, options.images, BATCH)]
        row_bytes = sum(array.row_bytes for array in members[0][0].arrays)

        def ours() -> None:
            for batch in batches:
                for (_, records), reader in zip(members, readers, strict=True):
                    for shard in range(shards):
                        rows = sorted(item.row for item in batch if item.shard == shard)
                        reader.read(records[shard], rows)

        def stock() -> None:
            for batch in batches[: max(len(batches) // 8, 1)]:
                for group in groups:
                    for item in batch:
                        for array in group.values():
                            array[item.shard, item.row]

        def pread() -> None:
            for batch in batches:
                for files in descriptors:
                    for item in batch:
                        for size, by_shard in files:
                            os.pread(by_shard[item.shard], size, item.row * size)

        readers = [RowReader(member) for member, _ in members]
        groups = []
        descriptors = []
        for member, _ in members:
            path = Path(folder) / member.folder / "features.zarr/000000" / VIEW
            groups.append({a.name: zarr.open(path / a.name, mode="r") for a in member.arrays})
            files = []
            for array in member.arrays:
                tail = ".0" * len(array.row)
                opened = {s: os.open(path / array.name / f"c.{s}.0{tail}", os.O_RDONLY) for s in range(shards)}
                files.append((array.row_bytes, opened))
            descriptors.append(files)
        result = {"codec": options.codec, "bytes_per_image": TEACHERS * row_bytes}
        for name, run, count in (
            ("pread", pread, options.images),
            ("ours", ours, options.images),
            ("stock", stock, max(len(batches) // 8, 1) * BATCH),
        ):
            run()
            start = time.perf_counter()
            run()
            result[f"{name}_images_per_second"] = round(count / (time.perf_counter() - start), 1)
        result["ours_to_pread"] = round(result["ours_images_per_second"] / result["pread_images_per_second"], 3)
        result["ours_to_stock"] = round(result["ours_images_per_second"] / result["stock_images_per_second"], 1)
        print(json.dumps(result))
        for files in descriptors:
            for _, opened in files:
                for descriptor in opened.values():
                    os.close(descriptor)


if __name__ == "__main__":
    main()
