"""What a paired difference says: the margins, fixed before the first run, and the verdict on an interval.

An interval that merely contains zero proves nothing: with few images it always does. So a setting has held only if the
whole 95 % interval of its difference lies within the margin (equivalence).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.study.results import Line

HELD, BETTER, WORSE, UNKNOWN = "held", "better", "worse", "cannot tell"
ACCEPTED = frozenset({HELD, BETTER})
MARGINS = {  # held-out loss: percent of the reference's; the others: points of 100
    "loss": 1.0,
    "knn": 2.0,
    "retrieval": 2.0,
    "linear": 2.0,
    "segmentation": 1.0,
}
TASKS = ("knn/all", "segmentation/composed")
DECIDING = ("loss-views/mean", "loss-images/mean", *TASKS)  # of a setting's outcome

Found = Mapping[str, float]  # value, low and high of a difference; above 0 is better than the reference


def margin(measure: str) -> float:
    """The margin of a measure such as `loss-views/mean` or `knn/food`."""
    return MARGINS[re.split("[-/]", measure)[0]]


def verdict(difference: Found, within: float) -> str:
    """Held if the interval lies within the margin, worse if it lies beyond, better if above both 0 and `held`."""
    low, high = difference["low"], difference["high"]
    if -within < low and high < within:
        return HELD
    if high < -within:
        return WORSE
    return BETTER if low > 0 else UNKNOWN


def overall(verdicts: Iterable[str]) -> str:
    """Worse if one is worse, held if all are at least held (better if all are better), else unknown."""
    found = set(verdicts)
    if WORSE in found:
        return WORSE
    if not found or found - ACCEPTED:
        return UNKNOWN
    return BETTER if found == {BETTER} else HELD


def outcome(line: Line, reference: str) -> str:
    """The verdict on a run against its reference, by the measures that decide and that both have."""
    return overall(_verdicts(line.figures["differences"].get(reference, {})))


def outcome_of_seeds(lines: Iterable[Line], reference: str, measures: Sequence[str] = DECIDING) -> str:
    """The verdict on a setting: every measure of every seed counts."""
    return overall(one for line in lines for one in _verdicts(line.figures["differences"].get(reference, {}), measures))


def _verdicts(differences: Mapping[str, Any], measures: Sequence[str] = DECIDING) -> list[str]:
    return [verdict(differences[name], margin(name)) for name in measures if name in differences]
