"""Read what `evaluate --json` wrote: every encoder on every task, checked value by value.

Other programs edit these files and people merge them, so nothing in them is taken on trust.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unic_cache.errors import ConfigError
from unic_cache.evaluate.bootstrap import Interval

LIMIT_BYTES = 2**28
STUDENT, TEACHER, RANDOM, NETWORK = "student", "teacher", "random student", "network"
UNKNOWN = "it is unknown whether it was trained on these test images"  # the end of such a remark
KINDS = (TEACHER, STUDENT, RANDOM, NETWORK)


@dataclass(frozen=True)
class Score:
    """One encoder on one task."""

    kind: str  # of KINDS
    estimate: Interval  # of the task's own metric; of "%" metrics fractions of 1
    metrics: Mapping[str, Interval]  # all metrics, by name
    per_class: Mapping[int, float]


@dataclass(frozen=True)
class TaskResult:
    """One task: its metric, and every encoder's score."""

    metric: str
    unit: str
    higher_is_better: bool
    images: int
    classes: int | None
    scores: Mapping[str, Score]  # by encoder
    gains: Mapping[str, tuple[str, Interval]]  # encoder -> the best teacher, and the gain over it in percent


@dataclass(frozen=True)
class Use:
    """How many dimensions the features of one encoder span: channels, and principal dimensions by percent held."""

    channels: int
    dimensions: Mapping[int, int]  # percent of the variance -> principal dimensions that hold it
    effective_rank: float


@dataclass(frozen=True)
class Curve:
    """A metric (a fraction of 1) over what was kept or removed."""

    metric: str
    points: Mapping[int, float]


@dataclass(frozen=True)
class Analysis:
    """What `evaluate --analysis` found of one encoder."""

    kind: str
    summary: Use | None
    patches: Use | None
    pruning: Curve | None  # over the percent of the weights set to zero
    components: Curve | None  # over the number of principal components kept


@dataclass(frozen=True)
class Evaluation:
    """One file of `evaluate --json`."""

    label: str
    images: int
    tasks: Mapping[str, TaskResult]
    analysis: Mapping[str, Analysis] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)  # student -> sha256 of its tensors; older files lack it
    trained_on: int = 0  # test images that a student was trained on
    remarks: Sequence[str] = ()

    @property
    def unknown(self) -> bool:
        """Whether nobody can tell of some encoder whether it was trained on test images."""
        return any(line.endswith(UNKNOWN) for line in self.remarks)

    @property
    def notes(self) -> list[str]:
        """What the scores do not say."""
        seen = f"Of the test images, up to {self.trained_on:,} were seen in training, without labels"
        return [*([seen] if self.trained_on else []), *self.remarks]


def read_evaluation(path: Path, label: str) -> Evaluation:
    """The evaluation in a file. ConfigError if it is none, is damaged, or has no tasks."""
    if path.stat().st_size > LIMIT_BYTES:
        raise ConfigError(f"{path}: too large for a result of `unic-cache evaluate --json`; give that file")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path}: neither a run's folder nor JSON ({error}); give run folders and files of `unic-cache evaluate "
            "--json`"
        ) from error
    if not isinstance(data, dict) or not {"tasks", "encoders"} & set(data):
        raise ConfigError(f"{path}: JSON, but not of `unic-cache evaluate --json`; give its output")
    if not isinstance(data.get("tasks"), dict) or not data["tasks"]:
        raise ConfigError(
            f'{path}: has no "tasks": an earlier release wrote it, or it was edited; run `unic-cache evaluate --json` '
            "again"
        )
    with _reading(path):
        tasks = {shown(name): _task(task) for name, task in data["tasks"].items()}
        analysis = {shown(name): _analysis(one) for name, one in (data.get("analysis") or {}).items()}
        weights = {shown(name): str(sha256) for name, sha256 in (data.get("weights") or {}).items()}
        seen = _count(data.get("trained_on", 0))
        remarks = [shown(str(line)) for line in data.get("remarks") or ()]
        return Evaluation(label, _count(data["images"]), tasks, analysis, weights, seen, remarks)


def shown(text: str) -> str:
    """A name from outside, printable: control characters and undecodable bytes are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        missing = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"{path}: damaged or edited, as a result of `unic-cache evaluate --json`: {missing}; run it again"
        ) from error


def _task(data: Mapping[str, Any]) -> TaskResult:
    gains = {
        shown(name): (shown(gain["over"]), _estimate({**gain, "value": gain["percent"]}))
        for name, gain in (data.get("gain") or {}).items()
    }
    higher = data["higher_is_better"]
    if not isinstance(higher, bool):
        raise TypeError(f"higher_is_better is {higher!r:.40}, not true or false")
    classes = data.get("classes")
    scores = {shown(name): _score(one) for name, one in data["encoders"].items()}
    if not scores:
        raise ValueError("a task has no encoder")
    return TaskResult(
        shown(data["metric"]),
        shown(data["unit"]),
        higher,
        _count(data["images"]),
        None if classes is None else _count(classes),
        scores,
        gains,
    )


def _score(data: Mapping[str, Any]) -> Score:
    return Score(
        _kind(data["kind"]),
        _estimate(data),
        {shown(name): _estimate(one) for name, one in (data.get("metrics") or {}).items()},
        {int(number): _number(value) for number, value in (data.get("per_class") or {}).items()},
    )


def _analysis(data: Mapping[str, Any]) -> Analysis:
    def of(key: str, read: Callable[[Mapping[str, Any]], Any]) -> Any:
        return read(data[key]) if data.get(key) else None

    return Analysis(
        _kind(data["kind"]), of("summary", _use), of("patches", _use), of("pruning", _curve), of("components", _curve)
    )


def _use(data: Mapping[str, Any]) -> Use:
    dimensions = {int(percent): _count(number) for percent, number in data["dimensions"].items()}
    return Use(_count(data["channels"]), dimensions, _number(data["effective_rank"]))


def _curve(data: Mapping[str, Any]) -> Curve:
    points = {int(key): _number(value) for key, value in data.items() if key != "metric"}
    return Curve(shown(data["metric"]), dict(sorted(points.items())))


def _kind(value: Any) -> str:
    if value not in KINDS:
        raise ValueError(f"an encoder's kind is {value!r:.40}, not one of {', '.join(KINDS)}")
    return str(value)


def _estimate(data: Mapping[str, Any]) -> Interval:
    return Interval(_number(data["value"]), _number(data["low"]), _number(data["high"]))


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is not a finite number")
    return float(value)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r:.40} is not a count")
    return value
