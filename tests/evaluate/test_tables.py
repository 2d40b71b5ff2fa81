"""The tables of encoders and tasks."""

from rich.console import Console

from unic_cache.evaluate.bootstrap import Interval
from unic_cache.evaluate.tables import Neighbours, Score, TaskResult, gain_table, score_table

ROWS = [
    ("lite@128", "teacher", "cache, klt 0.99", 1280),
    ("vit@112", "teacher", "cache, f16", 384),
    ("random student", "random student", "network", 192),
    ("student", "student", "network", 192),
]


def task(unit: str, metric: str, values: dict[str, float], best: str, higher: bool = True) -> TaskResult:
    kinds = {name: kind for name, kind, *_ in ROWS}
    scores = {
        name: Score(kinds[name], {metric: Interval(value, value - 0.05, value + 0.05)})
        for name, value in values.items()
    }
    gain = {"student": Interval(2.04, -1.0, 5.06)}
    return TaskResult(metric, unit, higher, 300, 9, scores, {}, best, gain)


def lines(table) -> list[str]:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(table)
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_rows_are_encoders_and_columns_tasks_with_intervals() -> None:
    tasks = {
        "knn": task(
            "%", "20-NN", {"lite@128": 0.8125, "vit@112": 0.5, "random student": 0.4, "student": 0.6}, "lite@128"
        ),
        "depth": task("m", "RMSE", {"vit@112": 0.5, "random student": 0.7, "student": 0.45}, "vit@112", False),
    }
    over = {"student": Interval(0.2, 0.1, 0.3), "random student": None}
    neighbours = [Neighbours(name, kind, dim, {}, over.get(name)) for name, kind, _, dim in ROWS]
    found = lines(score_table(ROWS, tasks, neighbours, "a title"))
    assert found[0] == "a title"
    assert "teacher lite@128 cache, klt 0.99 1280 81.2 (76.2..86.2) -" in found
    assert "random student network 192 40.0 (35.0..45.0) 0.700 (0.650..0.750)" in found
    assert "student network 192 60.0 (55.0..65.0) 0.450 (0.400..0.500) +20.0 (10.0..30.0)" in found
    gains = lines(gain_table(ROWS, tasks))
    assert "student +2.0 (-1.0..5.1) +2.0 (-1.0..5.1)" in gains
    assert not any("teacher lite" in line for line in gains)


def test_without_teachers_there_are_no_gains() -> None:
    alone = TaskResult("20-NN", "%", True, 3, 2, {}, {}, None, {})
    assert gain_table(ROWS, {"knn": alone}) is None
