"""What a run reports: sums kept on the device between two lines of the log, and the lines themselves as JSON."""

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
from pipelines.training.processes import main_says
from pipelines.training.tracking import tracked_values
from unic_cache.files.durable import naming
from unic_cache.files.schemes import open_location
from unic_cache.student.loss import LossTerms
from unic_cache.student.run_files import LOG


class Meter:
    """Averages of the loss terms over steps and processes. `add` never waits for the device; `read` does."""

    def __init__(self, accelerator: Accelerator, kinds: Mapping[str, Sequence[str]], clipped: bool = False) -> None:
        """`kinds` are each teacher's token kinds, so that a process that adds no batch still sums the same terms.

        `clipped`: whether the norm of the gradient is read too.
        """
        self._accelerator = accelerator
        parts = [(name, part) for name, own in kinds.items() for part in (*own, "coefficient", "top")]
        self._names: list[tuple[str, str]] = [("", "loss"), *parts, *([("", "grad_norm")] if clipped else [])]
        self._sum, self._weight = torch.zeros(2, len(self._names), device=accelerator.device)
        self._broken = 0
        self.broken = 0  # images in all that was read

    def add(self, terms: LossTerms, weight: float | Tensor = 1.0, broken: int = 0, norm: Tensor | None = None) -> None:
        """Count a batch, `weight` times, and its `broken` images, which the terms leave out.

        Means of a teacher that some images lack weigh as much as the share of the others. A `norm` that is not finite,
        as in the steps that fp16 leaves out, does not count.
        """
        values: dict[tuple[str, str], Tensor] = {("", "loss"): terms.loss.detach()}
        shares: dict[tuple[str, str], Tensor] = {}
        for number, (name, means) in enumerate(terms.means.items()):
            values |= {(name, kind): value for kind, value in means.items()}
            values[name, "coefficient"] = terms.coefficients[number].mean()
            values[name, "top"] = (terms.top == number).float().mean()
            if terms.present is not None:
                shares |= dict.fromkeys(((name, kind) for kind in means), terms.present[number].float().mean())
        if norm is not None:
            values["", "grad_norm"] = norm.nan_to_num(0.0, 0.0, 0.0)
            shares["", "grad_norm"] = norm.isfinite().float()
        every = torch.stack([values[name].float() for name in self._names]) * weight
        weights: Tensor | float = weight
        if shares:
            one = torch.ones_like(terms.loss.detach(), dtype=torch.float32)
            share = torch.stack([shares.get(name, one) for name in self._names])
            every, weights = every * share, share * weight
        self._sum, self._weight = self._sum + every, self._weight + weights
        self._broken += broken

    def read(self) -> dict[str, Any]:
        """{"loss", "broken", "teachers": {name: {kind, "coefficient", "top"}}} since the last read, and "grad_norm".

        `broken` counts images; if nothing but broken images came, the losses are 0. A teacher that all images lack has
        no loss.
        """
        packed = torch.cat([self._sum, self._weight, self._sum.new_tensor([self._broken])])
        total = self._accelerator.reduce(packed, "sum")
        sums, weights = total[:-1].chunk(2)
        values, seen = (sums / weights.where(weights > 0, 1.0)).tolist(), (weights > 0).tolist()
        all_broken = not any(seen)
        found: dict[str, Any] = {"broken": int(total[-1]), "teachers": {}}
        self._sum, self._weight = torch.zeros_like(sums), torch.zeros_like(sums)
        self._broken = 0
        self.broken += found["broken"]
        for (name, part), value, counts in zip(self._names, values, seen, strict=True):
            own = found["teachers"].setdefault(name, {}) if name else found
            if counts or all_broken or not name:
                own[part] = value
        return found


class Clock:
    """Images per second and the share of time spent waiting for batches, since the last line of the log."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._start, self._waited, self._images = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for a batch, and the batch's images."""
        since = time.perf_counter()
        yield
        self._waited += time.perf_counter() - since
        self._images += self._batch_size

    def read(self) -> dict[str, float]:
        """{"images_per_second", "waiting"} since the last read."""
        now = time.perf_counter()
        seconds = max(now - self._start, 1e-9)
        rates = {"images_per_second": self._images / seconds, "waiting": self._waited / seconds}
        self._start, self._waited, self._images = now, 0.0, 0
        return rates


class RunLog:
    """OUT/log.jsonl and the tracker, which get the same numbers. Only the main process reads and writes it."""

    def __init__(self, out: Path, accelerator: Accelerator, steps_done: int) -> None:
        self._path = out / LOG
        self._accelerator = accelerator
        self.last_loss = math.nan  # of the last training line
        self._note = {"train": "", "knn": ""}
        self._logged: set[tuple[str, int]] = set()  # kind, step
        if accelerator.is_main_process:
            text = self._path.read_text(errors="replace") if self._path.exists() else ""
            kept = [(line, found) for line in text.splitlines(keepends=True) if (found := _record(line, steps_done))]
            open_location(out).replace(LOG, "".join(line.rstrip("\n") + "\n" for line, _ in kept).encode())
            self._logged = {(str(found.get("kind")), int(found["step"])) for _, found in kept}
            losses = [found.get("loss") for _, found in kept if found.get("kind") == "train"]
            self.last_loss = next((loss for loss in reversed(losses) if isinstance(loss, float)), math.nan)

    def lacks(self, kind: str, step: int) -> bool:
        """Whether there is no such line; told to all processes, which meet here."""
        return main_says(self._accelerator, (kind, step) not in self._logged)

    @property
    def note(self) -> str:
        """The latest numbers in a few words, for the progress line."""
        return ", ".join(text for text in self._note.values() if text)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append {"kind", "step", ...} to the log, and give the tracker the numbers."""
        if kind == "train":
            self.last_loss = values["loss"]
            self._note[kind] = f"loss {self.last_loss:.4f}"
        if kind == "knn":
            self._note[kind] = f"{values['k']}-NN {values['accuracy']:.1%} at step {step:,}"
        if self._accelerator.is_main_process:
            with naming(self._path), open(self._path, "a") as file:
                file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._logged.add((kind, step))
        with self._tracking():
            self._accelerator.log(tracked_values(kind, values), step=step)

    def close(self) -> None:
        """End the tracker and accelerate's processes."""
        if self._accelerator.is_main_process:
            with self._tracking():
                for tracker in self._accelerator.trackers:
                    tracker.finish()
        self._accelerator.trackers.clear()
        self._accelerator.end_training()

    @contextmanager
    def _tracking(self) -> Iterator[None]:
        """Drop a tracker that fails, whatever its vendor's error: the log has the same numbers."""
        try:
            yield
        except Exception as error:
            self._accelerator.trackers.clear()
            say(f"the tracker cannot write ({reason(error)}); training goes on without it, and {LOG} has all")


def _record(line: str, steps_done: int) -> dict[str, Any] | None:
    """The record of a line; None if it is of a later step, or if a killed run left it half written."""
    try:
        record: dict[str, Any] = json.loads(line)
        return record if int(record["step"]) <= steps_done else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
