"""What `plan` says of the study is what the committed results say."""

import pytest

from benchmarks.study.results import RESULTS, read_lines
from benchmarks.study.runs import F16, ONLINE
from benchmarks.study.scales import FIRST, SCALES
from benchmarks.study.verdicts import HELD, UNKNOWN, WORSE, outcome_of_seeds
from pipelines.planning import evidence as module
from pipelines.planning.evidence import CLS_QUALITIES, LIMITS, QUALITIES, SAMPLES, TOGETHER, VIEWS, evidence
from unic_cache.config import FITTED

SCALE = SCALES[FIRST]


Setting = tuple[int, str, float | None, str | None, float | None]


def verdicts() -> dict[Setting, str]:
    """(views, codec, quality, rule of sampled tokens, cls_quality) -> the verdict of all seeds."""
    lines = [one for one in read_lines(RESULTS) if one.run.startswith("cache/") and one.settings["scale"] == FIRST]
    found: dict[Setting, list] = {}
    for line in lines:
        kept = line.settings["cache"]
        if line.run != ONLINE:
            stored = kept["codec"], kept["quality"], kept["sampling"], kept.get("cls_quality")
            found.setdefault((line.settings["distill"]["views"], *stored), []).append(line)
    return {key: outcome_of_seeds(own, ONLINE) for key, own in found.items()}


def test_every_verdict_of_the_results_is_told_and_no_other():
    told = {(views, F16, None, None, None): verdict for views, verdict in VIEWS.items()}
    new = SCALE.ablation.views
    told |= {(new, FITTED, quality, None, None): verdict for quality, verdict in QUALITIES.items()}
    told |= {(new, FITTED, max(QUALITIES), None, quality): verdict for quality, verdict in CLS_QUALITIES.items()}
    told |= {(new, F16, None, rule, None): verdict for rule, verdict in SAMPLES.items()}
    told |= {
        (views, FITTED, quality, rule, cls_quality): verdict
        for (quality, cls_quality, rule), verdicts in TOGETHER.items()
        for views, verdict in verdicts.items()
    }
    assert told == verdicts()


def test_it_says_for_whom_it_holds():
    assert f"{SCALE.ablation.views} epochs of {SCALE.ablation.images:,} images of {SCALE.small.img_size} px" in LIMITS
    lines = [line for line in read_lines(RESULTS) if line.run.startswith("cache/") and line.run != ONLINE]
    again = {line.run for line in lines if line.seed == 1}
    assert {line.seed for line in lines} <= {0, 1}
    both = [f"cache/{views}-views-klt-0.96" for views in (5, 10)]
    assert again == {f"{one}{more}" for one in both for more in ("", "-cls-0.99", "-cls-0.99-lattice-16")}
    assert len(again) == sum(map(len, TOGETHER.values()))
    assert "with one seed (those together: with two)" in LIMITS


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ((5, FITTED, None, None), "5 views held; klt at 0.96 held; CLS tokens at 0.99 held; all tokens are"),
        (
            (4, FITTED, 0.98, 49),
            "4 views not tried (5 held); klt at 0.98 not tried (0.96 held); CLS tokens at 0.99 held; 49",
        ),
        ((8, "f16", None, None), "8 views not tried (5 held); f16 is its reference"),
        ((20, FITTED, 0.5, None), "20 views not tried (10 held); klt at 0.5 not tried (0.96 held)"),
        ((10, "int4", None, None), "10 views held; int4 was not tried"),
        ((10, FITTED, 0.9, None), "10 views held; klt at 0.9 could not be shown equal (0.96 held)"),
        ((1, "f16", None, None), "1 view worse (5 held); f16 is its reference"),
        ((5, FITTED, None, None, 0.97), "klt at 0.96 held; CLS tokens at 0.97 not tried (0.96 held); all tokens"),
        ((5, FITTED, None, None, 1.0), "klt at 0.96 held; all tokens"),
        ((5, "int8", None, None, 0.97), "int8 was not tried; all tokens"),
        ((5, FITTED, None, 49), "49 tokens were not tried (a quarter by lattice held and by random could not be shown"),
    ],
)
def test_what_is_told_of_values_between_and_beyond(asked, words, monkeypatch):
    monkeypatch.setattr(module, "VIEWS", {10: HELD, 5: HELD, 1: WORSE})
    monkeypatch.setattr(module, "QUALITIES", {0.99: HELD, 0.96: HELD, 0.9: UNKNOWN})
    monkeypatch.setattr(module, "CLS_QUALITIES", {0.99: HELD, 0.96: HELD})
    monkeypatch.setattr(module, "SAMPLES", {"lattice": HELD, "random": UNKNOWN})
    monkeypatch.setattr(
        module, "TOGETHER", {(0.5, 0.7, "lattice"): {3: WORSE, 4: UNKNOWN}, (0.6, 0.7, None): {5: HELD}}
    )
    sampled = "klt at 0.5, CLS tokens at 0.7 and a quarter of the patch tokens by lattice, together: 3 views worse, "
    whole = "klt at 0.6, CLS tokens at 0.7 and all patch tokens, together: 5 views held"
    assert f"; {sampled}4 views could not be shown equal; {whole}. Every other" in evidence(*asked)
    assert words in evidence(*asked)


def test_nothing_is_told_where_nothing_held(monkeypatch):
    monkeypatch.setattr(module, "VIEWS", {})
    monkeypatch.setattr(module, "QUALITIES", {0.8: WORSE})
    monkeypatch.setattr(module, "CLS_QUALITIES", {})
    monkeypatch.setattr(module, "SAMPLES", {})
    monkeypatch.setattr(module, "TOGETHER", {})
    assert "5 views not tried; klt at 0.96 not tried; CLS tokens at 0.99 not tried; all tokens" in evidence(
        5, FITTED, None, None
    )
    assert "; 49 tokens were not tried. Every other" in evidence(5, FITTED, None, 49)
