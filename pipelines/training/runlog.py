"""What a run tells: sums kept on the device between two lines of the log, and the lines themselves as JSON."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pipelines.command.failures import reason
from pipelines.command.progress import say
from unic_cache.files.durable import naming
from unic_cache.files.schemes import open_location
from unic_cache.student.loss import LossTerms
from unic_cache.student.run_files import LOG


class Meter:
    """Averages of the loss terms over steps and processes. Adding never waits for the device; `read` does."""

    def __init__(self, accelerator: Accelerator, kinds: Mapping[str, Sequence[str]]) -> None:
        """`kinds` are the token types of each teacher: every process sums the same terms, though it add no batch."""
        self._accelerator = accelerator
        parts = [(name, kind) for name, own in kinds.items() for kind in (*own, "coefficient", "top")]
        self._names: list[tuple[str, str]] = [("", "loss"), *parts]
        self._sum = torch.zeros(len(self._names), device=accelerator.device)
        self._weight = 0.0
        self._broken = 0

    def add(self, terms: LossTerms, weight: float = 1.0, broken: int = 0) -> None:
        """Count one batch, `weight` times, and the images of it that were left out as broken."""
        led = [(terms.top == number).float().mean() for number in range(len(terms.means))]
        values: dict[tuple[str, str], Tensor] = {("", "loss"): terms.loss.detach()}
        for number, (name, means) in enumerate(terms.means.items()):
            values |= {(name, kind): value for kind, value in means.items()}
            values[name, "coefficient"] = terms.coefficients[number].mean()
            values[name, "top"] = led[number]
        self._sum = self._sum + torch.stack([values[name].float() for name in self._names]) * weight
        self._weight += weight
        self._broken += broken

    def read(self) -> dict[str, Any]:
        """{"loss", "broken", "teachers": {name: {"cls", "patch", "coefficient", "top"}}} since the last read.

        `broken` is a number of images; where nothing but broken ones came, the losses are 0.
        """
        packed = torch.cat([self._sum, self._sum.new_tensor([self._broken, self._weight])])
        total = self._accelerator.reduce(packed, "sum")
        values = (total[:-2] / total[-1].clamp(min=1)).tolist()
        found: dict[str, Any] = {"broken": int(total[-2]), "teachers": {}}
        self._sum, self._weight, self._broken = torch.zeros_like(self._sum), 0.0, 0
        for (name, kind), value in zip(self._names, values, strict=True):
            if name:
                found["teachers"].setdefault(name, {})[kind] = value
            else:
                found[kind] = value
        return found


class Clock:
    """Seconds since the last line, and how many of them were spent waiting for data; images meanwhile."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0
        self._images = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside is spent waiting for data."""
        since = time.perf_counter()
        yield
        self._waited += time.perf_counter() - since

    def count(self, images: int) -> None:
        """So many images were trained on."""
        self._images += images

    def read(self) -> dict[str, float]:
        """{"images_per_second", "waiting"}: the rate and the share of time spent waiting since the last read."""
        now = time.perf_counter()
        seconds = max(now - self._start, 1e-9)
        rates = {"images_per_second": self._images / seconds, "waiting": self._waited / seconds}
        self._start, self._waited, self._images = now, 0.0, 0
        return rates


class RunLog:
    """OUT/log.jsonl, the tracker, and their lines. Only the main process writes."""

    def __init__(self, out: Path, accelerator: Accelerator, steps_done: int) -> None:
        self._path = out / LOG
        self._accelerator = accelerator
        self.last_loss = math.nan  # of the last training line that is kept
        if accelerator.is_main_process:
            kept = [line for line in self._lines() if _step(line) <= steps_done]
            open_location(out).replace(LOG, "".join(kept).encode())
            self.last_loss = next((loss for line in reversed(kept) if (loss := _loss(line)) is not None), math.nan)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line {"kind", "step", ...}, and the same numbers to the tracker."""
        if self._accelerator.is_main_process:
            with naming(self._path), open(self._path, "a") as file:
                file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        with self._tracking():
            self._accelerator.log({f"{kind}/{name}": value for name, value in _flat(values).items()}, step=step)

    def close(self) -> None:
        """End the tracker and accelerate's processes."""
        with self._tracking():
            self._accelerator.end_training()

    @contextmanager
    def _tracking(self) -> Iterator[None]:
        """A tracker that cannot write is left out from then on: the log has the same numbers."""
        try:
            yield
        except OSError as error:
            self._accelerator.trackers.clear()
            say(f"the tracker cannot write ({reason(error)}); training goes on without it, and {self._path} has all")

    def _lines(self) -> list[str]:
        return self._path.read_text(errors="replace").splitlines(keepends=True) if self._path.exists() else []


def _step(line: str) -> float:
    """The step of a line; infinite for one that a killed run left half written."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf


def _loss(line: str) -> float | None:
    """The loss of a training line that `_step` has read."""
    record = json.loads(line)
    return float(record["loss"]) if record.get("kind") == "train" and isinstance(record.get("loss"), float) else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat
