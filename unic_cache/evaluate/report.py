"""Results for people: the table of encoders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from unic_cache.evaluate.knn import Interval

STYLES = {"teacher": "cyan", "student": "bold green", "random student": "dim"}  # of the table's rows


@dataclass(frozen=True)
class Encoder:
    """One encoder's k-NN results."""

    name: str
    kind: str  # teacher, student or random student
    dim: int  # channels of its feature
    accuracy: Mapping[int, Interval]  # k -> share of the test images that are classified correctly
    over_random: Interval | None  # paired difference to the random student, at the table's k


def result_table(encoders: Sequence[Encoder], k: int, title: str) -> Table:
    """The encoders in the order given: accuracy at `k` and its gain over the random student, in percent.

    Both have 95% intervals. The gain is paired, image by image, so its interval is narrower than those of two
    accuracies suggest.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("encoder", overflow="fold")
    for heading in ("dim", "k-NN % (95%)", "over random (95%)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in encoders:
        name = f"teacher {one.name}" if one.kind == "teacher" else one.name
        numbers = str(one.dim), _percent(one.accuracy[k]), _percent(one.over_random, "+")
        table.add_row(name, *numbers, style=STYLES[one.kind])
    return table


def _percent(found: Interval | None, sign: str = "-") -> str:
    if found is None:
        return ""
    return f"{100 * found.mean:{sign}.1f} ({100 * found.low:.1f}..{100 * found.high:.1f})"
