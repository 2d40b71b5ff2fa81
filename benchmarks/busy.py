"""A training step's rate alone and beside another busy process, by how OpenMP's threads wait for each other.

    python -m benchmarks.busy [--threads 2] [--seconds 15] [--turns 3] [--batch-size 16]

A ViT-Tiny at 64 px in patches of 8 takes AdamW steps towards random targets; nothing is read. Each way is a process of
its own, since OpenMP reads its variables when torch is loaded; all ways in turns, alone and beside one that counts.
A JSON line for each way; medians over the turns.

| what | images a second |
|---|---|
| `alone`, `busy` | with nothing beside it (see that nothing is), and beside one process that never rests |
| `alone_ratio`, `busy_ratio` | against `spinning`, the way of OpenMP as it comes |
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from statistics import median

VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
COUNTING = "while True: pass"


def ways(threads: int) -> dict[str, dict[str, str]]:
    """Variables of each way; the first is the one to compare with."""
    all_of_them = {"OMP_NUM_THREADS": str(threads)}
    return {
        "spinning": all_of_them,
        "passive": {**all_of_them, "OMP_WAIT_POLICY": "PASSIVE"},
        "spinning briefly": {**all_of_them, "GOMP_SPINCOUNT": "10000"},
        "a thread less": {"OMP_NUM_THREADS": str(max(threads - 1, 1))},
    }


def step_rate(seconds: float, batch: int) -> float:
    """Images a second of this process's own training steps, the first ones left out."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=8, num_classes=0)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images, targets = torch.randn(batch, 3, 64, 64), torch.randn(batch, 192)

    def step() -> None:
        torch.nn.functional.smooth_l1_loss(model(images), targets).backward()
        adamw.step()
        adamw.zero_grad()

    for _ in range(3):
        step()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        step()
        count += 1
    return batch * count / (time.perf_counter() - start)


def measured(variables: dict[str, str], seconds: float, batch: int, beside: bool) -> float:
    """The rate of a new process with these variables."""
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    other = subprocess.Popen([sys.executable, "-c", COUNTING]) if beside else None
    try:
        command = [
            sys.executable,
            "-m",
            "benchmarks.busy",
            "--one",
            "--seconds",
            str(seconds),
            "--batch-size",
            str(batch),
        ]
        return float(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)
    finally:
        if other is not None:
            other.kill()
            other.wait()


def main() -> None:
    """Measure all ways in turns, and print them."""
    parser = argparse.ArgumentParser(description="OpenMP's waiting, alone and beside a busy process")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(step_rate(options.seconds, options.batch_size))
        return
    rates: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for _ in range(options.turns):
        for name, variables in ways(options.threads).items():
            for beside in (False, True):
                rates[name, beside].append(measured(variables, options.seconds, options.batch_size, beside))
    first = next(iter(ways(options.threads)))
    for name, variables in ways(options.threads).items():
        alone, busy = (median(rates[name, beside]) for beside in (False, True))
        ratios = {
            "alone_ratio": round(alone / median(rates[first, False]), 3),
            "busy_ratio": round(busy / median(rates[first, True]), 3),
        }
        print(json.dumps({"way": name, **variables, "alone": round(alone, 1), "busy": round(busy, 1), **ratios}))


if __name__ == "__main__":
    main()
