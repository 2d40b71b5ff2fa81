"""Peak memory of `extract` and of `distill` as the store grows: `python -m benchmarks.memory [--codec f16 klt]`.

A tiny teacher and student on images of 32 pixels, so that what grows with rows and tars is not lost beside models and
batches. Each run is a process of its own; a JSON line for each codec:

| what | how |
|---|---|
| `images` | of the stores: 1, 4 and 16 times as many tars, of equally many rows each |
| `extract_mb`, `distill_mb` | the most that the process had resident: VmHWM, as ru_maxrss begins with its parent's |
| `extract_growth`, `distill_growth` | of the largest store over that of the smallest |
| `..._bytes_a_row` | by how much it grew from the 4-fold to the 16-fold store, by row |

Distillation takes as many steps from each store: half an epoch of the largest.
"""

import argparse
import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from webdataset import TarWriter

from pipelines import distill, extract
from unic_cache.config import CODECS, DistillConfig, ExtractConfig

TEACHER, STUDENT, SIZE = "timm:test_vit@32", "test_vit", 32
GROWTH = (1, 4, 16)
DISTINCT = 256
RUNS: dict[str, Callable[[dict[str, Any]], object]] = {
    "extract": lambda data: extract.run(ExtractConfig.from_json(data)),
    "distill": lambda data: distill.run(DistillConfig.from_json(data)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", nargs="+", choices=CODECS, default=["f16", "klt"])
    parser.add_argument("--rows", type=int, default=1024, help="of a tar")
    parser.add_argument("--tars", type=int, default=4, help="of the smallest store")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--run", help=argparse.SUPPRESS)  # a config, as JSON: what the processes of their own do
    options = parser.parse_args()
    if options.run:
        torch.set_num_threads(1)
        data = json.loads(options.run)
        RUNS[data["stage"]](data)
        print(peak())
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tars(folder / "tars", options.tars * GROWTH[-1], options.rows)
        weights = str(folder / "teacher.safetensors")
        save_file(timm.create_model("test_vit").state_dict(), weights)
        for codec in options.codec:
            print(json.dumps(measured(folder, weights, codec, options)), flush=True)


def measured(folder: Path, weights: str, codec: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both stages on stores of each size."""
    images = [growth * options.tars * options.rows for growth in GROWTH]
    megabytes: dict[str, list[float]] = {"extract": [], "distill": []}
    for growth in GROWTH:
        shards = f"{folder}/tars/{{000000..{growth * options.tars - 1:06d}}}.tar"
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            first = ExtractConfig(
                teachers=(TEACHER,),
                weights=(("", weights),),
                shards=shards,
                cache=cache,
                views=1,
                recipe="light",
                size=SIZE,
                codec=codec,
                batch_size=options.batch_size,
                calibration_images=images[0],
            )
            second = DistillConfig(
                cache=cache,
                shards=shards,
                out=f"{cache}-run",
                student=STUDENT,
                img_size=SIZE,
                recipe="light",
                batch_size=options.batch_size,
                steps=images[-1] // options.batch_size // 2,
                tracker="none",
            )
            for config in (first, second):
                megabytes[config.stage].append(alone(config.to_json()))
    result: dict[str, Any] = {"codec": codec, "rows_of_a_tar": options.rows, "images": images}
    for stage, sizes in megabytes.items():
        result[f"{stage}_mb"] = sizes
        result[f"{stage}_growth"] = round(sizes[-1] / sizes[0], 3)
        result[f"{stage}_bytes_a_row"] = round(1e6 * (sizes[-1] - sizes[1]) / (images[-1] - images[1]))
    return result


def alone(config: dict[str, Any]) -> float:
    """MB of a fresh process that runs the stage."""
    command = [sys.executable, "-m", "benchmarks.memory", "--run", json.dumps(config)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def peak() -> float:
    """MB that this process had resident at most."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return round(int(found[1]) * 1024 / 1e6, 1)


def write_tars(folder: Path, tars: int, rows: int) -> None:
    """Small noise images, the same few under ever new keys, with labels."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    images = []
    for _ in range(DISTINCT):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(buffer, "JPEG")
        images.append(buffer.getvalue())
    for tar in range(tars):
        with TarWriter(str(folder / f"{tar:06d}.tar")) as writer:
            for number in range(tar * rows, (tar + 1) * rows):
                writer.write({"__key__": f"{number:08d}", "jpg": images[number % DISTINCT], "cls": number % 1000})


if __name__ == "__main__":
    main()
