"""What the study found of a plan's settings, alone and together: docs/STUDY.md.

The verdicts are those of benchmarks/study/results.jsonl, which is no part of the installed package;
tests/study/test_evidence.py holds them to it. Values that the study has not tried are absent.
"""

from collections.abc import Mapping

from unic_cache.config import DEFAULT_QUALITY, EXACT, FITTED, default_cls_quality

HELD, UNKNOWN, WORSE = "held", "cannot tell", "worse"
VIEWS: Mapping[float, str] = {10: HELD, 5: HELD, 4: UNKNOWN, 2: WORSE, 1: WORSE}  # in float16
QUALITIES: Mapping[float, str] = {0.99: HELD, 0.96: HELD, 0.9: UNKNOWN, 0.8: WORSE}  # of klt, a new view in each epoch
CLS_QUALITIES: Mapping[float, str] = {0.99: HELD, 0.96: UNKNOWN}  # of klt, beside patch tokens at 0.99
SAMPLES: Mapping[str, str] = {"lattice": HELD, "random": HELD}  # of a quarter of the patch tokens, in float16
# klt's quality of patch tokens, of CLS tokens if not in float16, what chose a quarter of the patch tokens if not all
Stored = tuple[float, float | None, str | None]
TOGETHER: Mapping[Stored, Mapping[int, str]] = {  # at each number of views
    (0.96, 0.99, "lattice"): {5: WORSE, 10: WORSE},
    (0.96, 0.99, None): {5: HELD, 10: UNKNOWN},
    (0.96, None, None): {5: UNKNOWN, 10: HELD},
}
LIMITS = (
    "Every other setting was tried alone and with one seed (those together: with two), coded CLS tokens with klt "
    "at 0.99; by a ViT of width 192 and depth 6 from random weights, 24 epochs of 1,500 images of 64 px; other "
    "students, longer training, and other settings together were not: docs/STUDY.md"
)


def evidence(
    views: int, codec: str, quality: float | None, tokens: int | None, cls_quality: float | None = None
) -> str:
    """One sentence on views, codec and tokens, and for whom it holds."""
    aim = DEFAULT_QUALITY if quality is None else quality
    quarter = " and ".join(f"by {rule} {_words(verdict)}" for rule, verdict in SAMPLES.items())
    sampled = f"{tokens} tokens were not tried{f' (a quarter {quarter})' if quarter else ''}"
    stored = {FITTED: f"{FITTED} at {aim:g} {_said(aim, QUALITIES)}", "f16": "f16 is its reference"}
    parts = [
        f"{views} {'view' if views == 1 else 'views'} {_said(views, VIEWS)}",
        stored.get(codec, f"{codec} was not tried"),
        sampled if tokens else "all tokens are its reference",
    ]
    cls_quality = cls_quality or default_cls_quality(aim)
    if codec == FITTED and cls_quality != EXACT:
        parts.insert(2, f"CLS tokens at {cls_quality:g} {_said(cls_quality, CLS_QUALITIES)}")
    parts += [_together(settings, verdicts) for settings, verdicts in TOGETHER.items()]
    return f"the study, against new views and f16 in every epoch: {'; '.join(parts)}. {LIMITS}"


def _together(settings: Stored, verdicts: Mapping[int, str]) -> str:
    quality, cls_quality, rule = settings
    each = ", ".join(f"{views} views {_words(verdict)}" for views, verdict in verdicts.items())
    summaries = "in float16" if cls_quality is None else f"at {cls_quality:g}"
    tokens = "all patch tokens" if rule is None else f"a quarter of the patch tokens by {rule}"
    return f"{FITTED} at {quality:g}, CLS tokens {summaries} and {tokens}, together: {each}"


def _said(value: float, tried: Mapping[float, str]) -> str:
    """The verdict on a value that was tried; unless it held, also which did.

    Of a value that failed, the nearest finer one; of one not tried, the nearest coarser one, else the coarsest.
    """
    verdict = tried.get(value)
    held = [other for other, found in tried.items() if found == HELD]
    if verdict is None:
        nearest = max((other for other in held if other < value), default=min(held, default=None))
    else:
        nearest = min((other for other in held if other > value), default=None)
    words = "not tried" if verdict is None else _words(verdict)
    return words if verdict == HELD or nearest is None else f"{words} ({nearest:g} {HELD})"


def _words(verdict: str) -> str:
    return "could not be shown equal" if verdict == UNKNOWN else verdict
