"""`extract` shared by two workers on this machine: by Ray, against the static split of `--device cpu,cpu`, in one run.

    python -m benchmarks.sharing [--teacher NAME] [--tars N] [--images N] [--views N] [--turns N]

Synthetic photographs in tars, a teacher with random weights, one core for each worker; both ways in turns, each into a
cache of its own. Prints a JSON line; medians over the turns. Needs the extra `ray`.

| what | how |
|---|---|
| `split`, `ray` | images a second, by the times of commit records, without the first third: until then workers load |
| `ray_to_split` | ratio of both in the same turn, median; the goal is 0.95 |
| `whole_ray_to_split` | the same ratio of whole commands, which start processes, load the teacher and calibrate |
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmarks.extracting import random_weights, write_tars
from pipelines import extract
from unic_cache.config import ExtractConfig

WAYS = {"split": {"device": "cpu,cpu"}, "ray": {"device": "cpu", "ray": "auto"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="timm:vit_small_patch16_224")
    parser.add_argument("--tars", type=int, default=8)
    parser.add_argument("--images", type=int, default=512, help="in all tars")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    import ray

    ray.init("local", num_cpus=2, object_store_memory=10**8, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tars(folder / "tars", options.images, options.tars)
        config = ExtractConfig(
            teachers=(options.teacher,),
            weights=random_weights(folder, (options.teacher,)),
            shards=str(folder / "tars/*.tar"),
            views=options.views,
            batch_size=options.batch_size,
            calibration_images=64,
            threads=1,
            quality=0.9998,
        )
        turns = [
            {way: rates(replace(config, cache=str(folder / f"{way}-{turn}"), **own)) for way, own in WAYS.items()}
            for turn in range(options.turns)
        ]
    ray.shutdown()
    found = {way: round(median(turn[way][0] for turn in turns), 2) for way in WAYS}
    ratios = [median(turn["ray"][part] / turn["split"][part] for turn in turns) for part in (0, 1)]
    told = {"ray_to_split": round(ratios[0], 3), "whole_ray_to_split": round(ratios[1], 3)}
    print(json.dumps({**vars(options), **found, **told}), flush=True)


def rates(config: ExtractConfig) -> tuple[float, float]:
    """Images a second: between commits, without the first third of the units; and of the whole command."""
    began = time.perf_counter()
    done = extract.run(config)
    whole = done.images / (time.perf_counter() - began)
    times = sorted(path.stat().st_mtime_ns / 1e9 for path in Path(config.cache).glob("*/commits/*/*/*.json"))
    first = len(times) // 3
    share = (len(times) - 1 - first) / len(times)
    return done.images * share / (times[-1] - times[first]), whole


if __name__ == "__main__":
    main()
