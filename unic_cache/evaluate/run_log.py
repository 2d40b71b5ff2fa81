"""Read a run's log.jsonl: losses, teacher coefficients and k-NN by step, and what the run cost."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from unic_cache.errors import ConfigError

SHARES = {"coefficient", "top"}  # logged per teacher beside its losses
TRAIN, VAL, KNN = "train", "val", "knn"  # kinds of records
NEEDS = {TRAIN: ("loss",), VAL: ("loss",), KNN: ("accuracy", "low", "high")}  # finite numbers in each

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Cost:
    """What a run cost, from the rates in its log."""

    images: int
    hours: float
    images_per_second: float
    waiting: float  # share of the time spent waiting for batches


def read_log(log: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records sorted by step, training before validation; of a step logged twice, the later record.

    Skips lines that a killed run left half written. ConfigError if there is no file, or no record in it.
    """
    found = [record for record in read_records(log) if record["kind"] in {TRAIN, VAL}]
    if not found:
        raise ConfigError(f"{log}: no training or validation records in it yet")
    return found


def read_records(log: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of every kind in NEEDS, as `read_log`. ConfigError if there is no file."""
    path = Path(log)
    if not path.is_file():
        raise ConfigError(f"{path}: no such log; `unic-cache distill` writes it into the run's folder")
    records: dict[tuple[int, int], dict[str, Any]] = {}
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            kind = record["kind"]
            whole = all(isinstance(own, dict) for own in record.get("teachers", {}).values())
            if whole and all(isinstance(record[key], float) and math.isfinite(record[key]) for key in NEEDS[kind]):
                records[int(record["step"]), [*NEEDS].index(kind)] = record
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return [records[key] for key in sorted(records)]


def kind_losses(record: Record) -> dict[str, dict[str, float]]:
    """{teacher: {token kind: loss}} of a record."""
    teachers = record.get("teachers", {})
    return {
        name: {kind: loss for kind, loss in own.items() if kind not in SHARES and _finite(loss)}
        for name, own in teachers.items()
    }


def teacher_losses(record: Record) -> dict[str, float]:
    """{teacher: loss}: the mean over its token kinds, as the training loss takes it."""
    return {name: sum(own.values()) / len(own) for name, own in kind_losses(record).items() if own}


def teacher_shares(record: Record, share: str) -> dict[str, float]:
    """{teacher: its `coefficient`, or the share of images on which its loss is at the `top`}."""
    return {name: own[share] for name, own in record.get("teachers", {}).items() if _finite(own.get(share))}


def knn_percents(record: Record) -> dict[str, float]:
    """Accuracy and its interval of a k-NN record, in percent."""
    return {key: 100 * record[key] for key in NEEDS[KNN]}


def cost(records: Sequence[Record], batch_size: int) -> Cost | None:
    """Images, hours and rates of a run; None if no training record has a rate.

    Each line of the log has the mean rate since the last one, so images / rate sums to the time at work, with
    validation in it, and without the time between a stop and its --resume.
    """
    images, seconds, waited, last = 0, 0.0, 0.0, 0
    for record in records:
        rate = record.get("images_per_second")
        if record["kind"] == TRAIN and _finite(rate) and rate > 0:
            own = (int(record["step"]) - last) * batch_size
            images, seconds = images + own, seconds + own / rate
            waiting = record.get("waiting", 0.0)
            waited += own / rate * (waiting if _finite(waiting) else 0.0)
            last = int(record["step"])
    return Cost(images, seconds / 3600, images / seconds, waited / seconds) if seconds else None


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
