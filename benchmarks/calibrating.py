"""The calibration of several teachers: each beside the others, against one after another, in one run.

    python -m benchmarks.calibrating [--teachers N] [--views N] [--channels N] [--quality Q]

Random fields stand for the patch tokens, so that nothing but the calibration's own work is timed: what a GPU waits for.

| what | how |
|---|---|
| counting | statistics of all views, seconds |
| making | fitting codec klt and the rest, seconds |
| times | how often the second way's seconds go into the first's |
| equal | whether both ways give the same bytes |
"""

import argparse
import json
import time
from contextlib import ExitStack
from functools import partial

import torch

from pipelines.extracting.calibrating import counting, made
from unic_cache.config import DEFAULT_QUALITY
from unic_cache.store.calibrate import Calibrator
from unic_cache.store.codecs.codec import Features
from unic_cache.token_kinds import TokenKind

GRID, BATCH, BATCHES = (14, 14), 64, 4  # as many batches take turns


def main() -> None:
    """Print a line for each way, then both compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=int, default=4)
    parser.add_argument("--views", type=int, default=5120)
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--quality", type=float, default=DEFAULT_QUALITY)
    options = parser.parse_args()
    features = Features("klt", {"patch": TokenKind(options.channels, GRID)}, quality=options.quality)
    batches = [tokens(options.channels, seed) for seed in range(BATCHES)]
    count = max(options.views // BATCH, 1)
    found = {}
    for way, device in (("one after another", "cpu"), ("beside each other", "cuda")):
        calibrators = [Calibrator(features) for _ in range(options.teachers)]
        began = time.monotonic()
        with ExitStack() as threads:
            later = [threads.enter_context(counting(str(at), torch.device(device))) for at in range(options.teachers)]
            for number in range(count):
                for one, run in zip(calibrators, later, strict=True):
                    run(partial(one.update, {"patch": batches[number % BATCHES]}))
        counted = time.monotonic()
        together = [calibrators] if device == "cuda" else [[one] for one in calibrators]
        data = [one for some in together for one in made(some)]
        ended = time.monotonic()
        found[way] = (ended - began, data)
        print(json.dumps({"way": way, "counting": round(counted - began, 1), "making": round(ended - counted, 1)}))
    (slow, before), (fast, after) = found.values()
    print(json.dumps({"teachers": options.teachers, "times": round(slow / fast, 2), "equal": before == after}))


def tokens(channels: int, seed: int) -> torch.Tensor:
    """(BATCH, T, D) tokens that resemble their neighbours, in channels that resemble each other."""
    draw = torch.Generator().manual_seed(seed)
    fields = torch.randn(BATCH, channels // 8, *GRID, generator=draw)
    smooth = torch.nn.functional.avg_pool2d(fields, 3, 1, 1).flatten(2).transpose(1, 2)
    mixed = smooth @ torch.randn(channels // 8, channels, generator=torch.Generator().manual_seed(0))
    return mixed / mixed.std() + 0.2 * torch.randn(mixed.shape, generator=draw)


if __name__ == "__main__":
    main()
