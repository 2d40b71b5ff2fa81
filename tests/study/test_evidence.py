"""What `plan` says of the study is what the committed results say."""

import pytest

from benchmarks.study.results import RESULTS, read_lines
from benchmarks.study.runs import F16, ONLINE
from benchmarks.study.scales import FIRST, SCALES
from benchmarks.study.verdicts import HELD, UNKNOWN, WORSE, outcome_of_seeds
from pipelines.planning import evidence as module
from pipelines.planning.evidence import LIMITS, QUALITIES, VIEWS, evidence
from unic_cache.config import FITTED

SCALE = SCALES[FIRST]


def verdicts() -> dict[tuple[int, str, float | None, int | None], str]:
    """(views, codec, quality, tokens) -> the verdict of all seeds."""
    lines = [one for one in read_lines(RESULTS) if one.run.startswith("cache/") and one.settings["scale"] == FIRST]
    found: dict[tuple[int, str, float | None, int | None], list] = {}
    for line in lines:
        kept = line.settings["cache"]
        if line.run != ONLINE:
            key = line.settings["distill"]["views"], kept["codec"], kept["quality"], kept["tokens"]
            found.setdefault(key, []).append(line)
    return {key: outcome_of_seeds(own, ONLINE) for key, own in found.items()}


def test_every_verdict_of_the_results_is_told_and_no_other():
    told = {(views, F16, None, None): verdict for views, verdict in VIEWS.items()}
    told |= {(SCALE.ablation.views, FITTED, quality, None): verdict for quality, verdict in QUALITIES.items()}
    assert told == verdicts()


def test_it_says_for_whom_it_holds():
    assert f"{SCALE.ablation.views} epochs of {SCALE.ablation.images:,} images of {SCALE.small.img_size} px" in LIMITS
    assert {line.seed for line in read_lines(RESULTS) if line.run.startswith("cache/") and line.run != ONLINE} <= {0}
    assert "with one seed" in LIMITS


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ((5, FITTED, None, None), "5 views held; klt at 0.99 held; all tokens are its reference"),
        ((4, FITTED, 0.98, 49), "4 views not tried (5 held); klt at 0.98 not tried (0.96 held); 49 tokens were not"),
        ((8, "f16", None, None), "8 views not tried (5 held); f16 is its reference"),
        ((20, FITTED, 0.5, None), "20 views not tried (10 held); klt at 0.5 not tried (0.96 held)"),
        ((10, "int4", None, None), "10 views held; int4 was not tried"),
        ((10, FITTED, 0.9, None), "10 views held; klt at 0.9 could not be shown equal"),
        ((1, "f16", None, None), "1 views worse; f16 is its reference"),
    ],
)
def test_what_is_told_of_values_between_and_beyond(asked, words, monkeypatch):
    monkeypatch.setattr(module, "VIEWS", {10: HELD, 5: HELD, 1: WORSE})
    monkeypatch.setattr(module, "QUALITIES", {0.99: HELD, 0.96: HELD, 0.9: UNKNOWN})
    assert words in evidence(*asked)


def test_nothing_is_told_where_nothing_held(monkeypatch):
    monkeypatch.setattr(module, "VIEWS", {})
    monkeypatch.setattr(module, "QUALITIES", {0.8: WORSE})
    assert "5 views not tried; klt at 0.99 not tried; all tokens" in evidence(5, FITTED, None, None)
