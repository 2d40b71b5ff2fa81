"""From metrics to results: intervals, paired differences and gains on the same resampled images, and the JSON of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pipelines.evaluating.encoders import RANDOM, TEACHER, Encoder
from pipelines.evaluating.measuring import Measured
from unic_cache.evaluate.bootstrap import Interval, Resampled, difference, gain, interval, resample
from unic_cache.evaluate.tables import Neighbours, Score, TaskResult

NEIGHBOURS = "-NN"  # after k, in the names of k-NN's metrics


@dataclass(frozen=True)
class Result:
    """All encoders on the same test images: teachers first, students last."""

    k: int
    images: int  # tested by k-NN, or by the first task
    classes: int
    encoders: Sequence[Neighbours]
    left_out: int = 0  # images of all sets that cannot be used
    twins: int = 0  # pairs of images with equal pixels, which never vote for each other
    trained_on: int = 0  # test images that a student was trained on, as far as its run and the cache tell
    rows: Sequence[tuple[str, str, str, int]] = ()  # name, kind, what it was made from, channels
    tasks: Mapping[str, TaskResult] = dataclasses.field(default_factory=dict)
    analysis: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    remarks: Sequence[str] = ()
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)  # student -> sha256 of its tensors

    def to_json(self) -> dict[str, Any]:
        """The result as JSON-ready data."""
        data = {name: getattr(self, name) for name in ("k", "images", "classes", "left_out", "twins", "trained_on")}
        data["remarks"] = list(self.remarks)
        data["encoders"] = [dataclasses.asdict(one) for one in self.encoders]
        made_of = {name: text for name, _, text, _ in self.rows}
        data["tasks"] = {task: task_json(result, made_of) for task, result in self.tasks.items()}
        return {**data, "analysis": dict(self.analysis), "weights": dict(self.weights)}

    def notes(self) -> list[str]:
        """What the tables do not say."""
        seen = (
            f"the student was trained on views of {self.trained_on} of these test images, without labels; images held "
            "out of training (--val-shards) tell more about new images"
        )
        return [*([seen] if self.trained_on else []), *self.remarks]


def task_json(result: TaskResult, made_of: Mapping[str, str]) -> dict[str, Any]:
    """A task as JSON-ready data."""
    encoders = {}
    for name, score in result.encoders.items():
        own = score.metrics[result.metric]
        encoders[name] = {
            "kind": score.kind,
            "from": made_of[name],
            "metric": result.metric,
            **value_json(own),
            "metrics": {metric: value_json(found) for metric, found in score.metrics.items()},
            **({"per_class": dict(score.per_class)} if score.per_class else {}),
        }
    pairs = [
        {"one": one, "other": other, "difference": found.mean, "low": found.low, "high": found.high}
        for (one, other), found in result.pairs.items()
    ]
    gains = {
        name: {"over": result.best, "percent": found.mean, "low": found.low, "high": found.high}
        for name, found in result.gain.items()
    }
    facts = {key: getattr(result, key) for key in ("metric", "unit", "higher_is_better", "images", "classes")}
    return {**facts, "encoders": encoders, "pairs": pairs, "gain": gains}


def value_json(found: Interval) -> dict[str, float]:
    """An interval under the names of `evaluate --json`."""
    return {"value": found.mean, "low": found.low, "high": found.high}


def compare(measured: Measured, encoders: Sequence[Encoder], seed: int, resamples: int) -> TaskResult:
    """Intervals of all metrics, paired differences of every two encoders, and gains over the best teacher."""
    metric, first = next(iter(next(iter(measured.metrics.values())).items()))
    kinds = {one.name: one.kind for one in encoders if one.name in measured.metrics}
    own = {(name, called): one for name, metrics in measured.metrics.items() for called, one in metrics.items()}
    drawn = resample(own, seed, resamples)
    main = {name: drawn[name, metric] for name in kinds}
    best = best_teacher(main, kinds)
    scores = {
        name: Score(
            kinds[name],
            {called: interval(drawn[name, called]) for called in metrics},
            metrics[metric].per_class,
        )
        for name, metrics in measured.metrics.items()
    }
    pairs = {(one, other): difference(main[one], main[other]) for one, other in combinations(kinds, 2)}
    gains = {name: gain(main[name], main[best]) for name in kinds if best is not None and kinds[name] != TEACHER}
    return TaskResult(
        metric,
        first.unit,
        first.higher_is_better,
        measured.images,
        measured.classes,
        scores,
        pairs,
        best,
        {name: found for name, found in gains.items() if found is not None},
    )


def best_teacher(main: Mapping[str, Resampled], kinds: Mapping[str, str]) -> str | None:
    """The cached teacher with the best value, if there is a teacher."""
    teachers = [name for name, kind in kinds.items() if kind == TEACHER]
    return max(teachers, key=lambda name: main[name].value * (1 if main[name].higher_is_better else -1), default=None)


def is_untrained(random: Encoder, student: Encoder) -> bool:
    """Whether `random` has the architecture and sizes of a student."""
    assert random.spec is not None
    assert student.spec is not None
    return random.spec == dataclasses.replace(student.spec, drop_path=0.0)


def neighbours(
    measured: Measured, encoders: Sequence[Encoder], dims: Mapping[str, int], k: int, seed: int, resamples: int
) -> list[Neighbours]:
    """k-NN as a list of encoders: accuracy at every k, and what each has over its random student, or the first one."""
    drawn = resample(
        {(name, metric): one for name, own in measured.metrics.items() for metric, one in own.items()}, seed, resamples
    )
    untrained = [one for one in encoders if one.kind == RANDOM]
    found = []
    for one in encoders:
        same = [other.name for other in untrained if one.spec is not None and is_untrained(other, one)]
        random = next(iter([*same, *(other.name for other in untrained)]), None)
        ks = [int(metric.removesuffix(NEIGHBOURS)) for name, metric in drawn if name == one.name]
        accuracy = {size: interval(drawn[one.name, f"{size}{NEIGHBOURS}"]) for size in sorted(ks)}
        over = None
        if random is not None and one.kind != RANDOM:
            over = difference(drawn[one.name, f"{k}{NEIGHBOURS}"], drawn[random, f"{k}{NEIGHBOURS}"])
        found.append(Neighbours(one.name, one.kind, dims[one.name], accuracy, over))
    return found
