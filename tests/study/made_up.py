"""Lines of runs that never ran: every measure has one score, every difference one interval; and labelled sets."""

from dataclasses import dataclass

from benchmarks.study.results import Line
from benchmarks.study.runs import Run, plan
from benchmarks.study.scales import Scale


@dataclass(frozen=True)
class Labelled:
    name: str
    about: str
    tasks: tuple[str, ...]
    shards: str | None
    train: str | None = None
    test: str | None = None


BYTES = {"f16": 130_000.0, "klt": 10_000.0}
CLS = {None: 1.0, 0.99: 0.9, 0.96: 0.85}  # what is left of all bytes where CLS tokens are coded so


def interval(value: float, half: float = 0.1) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def line_of(run: Run, difference: float = 0.0) -> Line:
    """A run that differs by `difference` from all its references, in every measure."""
    settings = run.settings
    tasks = [f"{task}/{name}" for task, sets in settings["evaluate"]["tasks"].items() for name in sets]
    measures = [*tasks, "knn/all", "mean/tasks"]
    figures = {"sets": {"food": "photographs of dishes"}, "teacher": "made up; MIT"} if "teacher" in settings else {}
    if "distill" in settings:
        kept = settings["cache"]
        measures += [name for name in ("loss-images/mean", "loss-views/mean") if settings["losses"]]
        size = BYTES[kept["codec"]] * (kept["quality"] or 1.0) * (0.25 if kept["tokens"] else 1.0)
        size *= CLS[kept.get("cls_quality")]
        figures["bytes"] = {"view": size, "teachers": {}, "ratio": BYTES["f16"] / size}
    figures |= {
        "scores": {name: interval(50.0 + len(run.name) % 7) for name in measures},
        "differences": {name: {one: interval(difference) for one in measures} for name, _ in run.against},
        "test_images": dict.fromkeys(measures, 2000),
        "machine": {"device": "cpu", "cores": 2, "torch": "0"},
    }
    return Line(run.name, run.seed, settings, figures, 60.0)


def lines_of(scale: Scale, differences: dict[str, float] | None = None) -> list[Line]:
    """Lines of the whole plan, the combinations that they lead to included."""
    lines: list[Line] = []
    while True:
        done = {line.key for line in lines}
        left = [run for run in plan(scale, lines) if (scale.name, run.name, run.seed) not in done]
        if not left:
            return lines
        lines += [line_of(run, (differences or {}).get(run.name, 0.0)) for run in left]
