"""The fused ladder against one module per block, teacher and token type, in one run.

    python -m benchmarks.ladder [--student vit_base_patch16_224] [--batch N] [--device auto] [--precision auto]

Forward and backward of the ladder alone, for four teachers of ViT-B's shape on random tokens; on CUDA under bf16.

| what | how |
|---|---|
| seconds | median of repetitions that take turns |
| kept_mb | what autograd keeps for backward beside parameters and tokens, each storage once |
| peak_mb | CUDA alone: the most that is allocated beside parameters and tokens, gradients of both included |
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from unic_cache.student.backbone import anatomy, encoder_spec
from unic_cache.student.ladder import Ladder, Tokens
from unic_cache.token_kinds import Grid, TokenKind

TEACHERS, WIDTH, GRID = 4, 768, (14, 14)
KINDS = {"cls": TokenKind(WIDTH), "patch": TokenKind(WIDTH, GRID)}
MB = 1e6
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}

Blocks = list[tuple[Tensor, Tensor]]
Run = Callable[[Blocks, Sequence[Grid]], dict[str, Tokens]]


def one_module_each(ladder: Ladder) -> Run:
    """The ladder as its definition has it: every module on its own, then the sum over blocks."""

    def run(blocks: Blocks, _: Sequence[Grid]) -> dict[str, Tokens]:
        guesses: dict[str, Tokens] = {name: {} for name in ladder.targets}
        for name, guess in guesses.items():
            for at, kind in enumerate(("cls", "patch")):
                projectors = ladder.heads[f"{name}:{kind}"].children()
                first, *others = (projector(block[at]) for projector, block in zip(projectors, blocks, strict=True))
                guess[kind] = sum(others, start=first)
        return guesses

    return run


class Step:
    """Forward and backward of one ladder on tokens as timm gives them: views of (B, 1 + T, D) in every block."""

    def __init__(self, student: str, batch: int, device: torch.device, precision: torch.dtype | None) -> None:
        spec = encoder_spec(student)
        if spec.grid != GRID:
            raise SystemExit(f"{student} has a grid of {spec.grid}, not {GRID}: choose one of patch 16 at 224 px")
        found = anatomy(spec)
        depth, (width, _) = len(found.widths), found.widths[0]
        targets = {f"t{number}": KINDS for number in range(TEACHERS)}
        self.grids, self.device, self.precision = found.grids, device, precision
        self.ladder = Ladder(found.widths, targets, seed=0).to(device)
        torch.manual_seed(0)
        tokens = spec.grid[0] * spec.grid[1]
        self.outputs = [torch.randn(batch, 1 + tokens, width, device=device).requires_grad_() for _ in range(depth)]

    def loss(self, run: Run) -> Tensor:
        """Mean squares of all guesses, which is a loss of the right size and nearly free."""
        blocks = [(output[:, 0], output[:, 1:]) for output in self.outputs]
        autocast = torch.autocast(self.device.type, self.precision) if self.precision else contextlib.nullcontext()
        with autocast:
            guesses = run(blocks, self.grids)
        return torch.stack(
            [guess.float().square().mean() for part in guesses.values() for guess in part.values()]
        ).sum()

    def seconds(self, run: Run) -> float:
        self.forget()
        self.wait()
        start = time.perf_counter()
        torch.autograd.backward(self.loss(run))
        self.wait()
        return time.perf_counter() - start

    def kept(self, run: Run) -> float:
        """MB that wait for backward."""
        given = [*self.ladder.parameters(), *self.outputs]
        known = {value.untyped_storage().data_ptr() for value in given}
        storages: dict[int, int] = {}

        def note(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
            loss = self.loss(run)
        size = sum(size for pointer, size in storages.items() if pointer not in known) / MB
        del loss
        return size

    def peak(self, run: Run) -> float:
        """MB at the fullest moment, on CUDA."""
        self.forget()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        torch.autograd.backward(self.loss(run))
        return (torch.cuda.max_memory_allocated() - before) / MB

    def forget(self) -> None:
        for value in [*self.ladder.parameters(), *self.outputs]:
            value.grad = None

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--student", default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, help="images; 2 on CPU and 128 on CUDA unless told")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", *PRECISIONS])
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    found = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(found if options.device == "auto" else options.device)
    cuda = device.type == "cuda"
    precision = ("bf16" if cuda else "no") if options.precision == "auto" else options.precision
    batch = options.batch or (128 if cuda else 2)

    step = Step(options.student, batch, device, PRECISIONS[precision])
    runs: dict[str, Run] = {"plain": one_module_each(step.ladder), "fused": step.ladder}
    losses = {name: step.loss(run).item() for name, run in runs.items()}
    apart = abs(losses["fused"] / losses["plain"] - 1)
    if apart > (1e-5 if precision == "no" else 1e-2):
        raise SystemExit(f"not the same numbers: losses {losses}")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.repeat + 1):
        for name, run in runs.items():
            took = step.seconds(run)
            if turn:
                times[name].append(took)
    result = {"student": options.student, "batch": batch, "precision": precision, "threads": torch.get_num_threads()}
    result["device"] = torch.cuda.get_device_name(device) if cuda else "cpu"
    for name, run in runs.items():
        result[f"{name}_seconds"] = round(median(times[name]), 4)
        result[f"{name}_kept_mb"] = round(step.kept(run), 1)
        if cuda:
            result[f"{name}_peak_mb"] = round(step.peak(run), 1)
    result["plain_to_fused"] = round(median(times["plain"]) / median(times["fused"]), 3)
    result["losses_apart"] = float(f"{apart:.1g}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
