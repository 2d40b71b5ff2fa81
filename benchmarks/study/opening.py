"""How the study's page begins: the question, and how it is answered."""

from collections.abc import Mapping, Sequence

from benchmarks.study.markdown import TITLES, table
from benchmarks.study.results import Line
from benchmarks.study.runs import ONLINE, PAPER, QUICK, RESAMPLES
from benchmarks.study.scales import FIRST, Scale
from benchmarks.study.verdicts import DECIDING, MARGINS

LOSS, _, KNN, MIOU = DECIDING
NOTED = (  # of the first scale; `sources.clip_art` groups drawings by name, and those stars' names end in letters
    "259 of the 1,600 images of the held-out loss are of one series of stars, of which others are trained on. Without "
    "these the loss is higher, and those differences between runs that could be recomputed move by less than 0.1 %. "
    "The segmentation head and the linear solver were replaced after the claim's first student was measured, whom both "
    "changes favoured; every encoder was measured again with them"
)


def opening(scale: Scale, runs: Mapping[str, Sequence[Line]]) -> str:
    """What was asked, how it is measured, and on which machine."""
    every = [line for own in runs.values() for line in own]
    machines = {", ".join(f"{name} {value}" for name, value in line.figures["machine"].items()): None for line in every}
    base, small, large = scale.ablation, scale.small, scale.large
    rows = [
        ("scale", f"`{scale.name}`: {scale.about}"),
        ("machine", "; ".join(machines) or "not run yet"),
        ("time", f"{sum(line.seconds for line in every) / 3600:.1f} hours"),
        (
            "caches, ablations",
            f"{base.images:,} images, views of {scale.view_size} px; {small.student} at {small.img_size} px from "
            f"random weights, batch {small.batch_size}; {base.views} epochs for caches, {scale.ablation_epochs} for "
            "UNIC's ablations",
        ),
        (
            "claim",
            f"{scale.claim.images:,} images, {scale.claim.views} views, {scale.claim_epochs:g} epochs; {large.student} "
            f"at {large.img_size} px, batch {large.batch_size}, from the weights of {scale.start} and from random ones"
            "; every task of `evaluate` but depth, of which the packages have no maps",
        ),
        (
            "online",
            "a new view in each epoch, float16 targets of all tokens. A view is a pure function of its number, so a "
            "float16 cache with as many views as epochs shows the student what teachers beside it would",
        ),
        ("margins", f"fixed before the first run: {margins()}"),
        (
            "plan",
            "single settings as fixed before the first run. Coded CLS tokens, 4 views (then the default of `extract`) "
            "and the rule by which settings are combined came once others had lines",
        ),
        (
            "verdicts",
            "*held*: the whole 95 % interval of the paired difference lies within the margin; *worse*: it lies beyond "
            "it; *better*: it lies above 0 and not within the margin; else *cannot tell*. That an interval contains 0 "
            "proves no equality. A row counts every measure of every seed: it is *worse* if one of them is, *better* "
            "if all are, *held* if each is one of *held* and *better*",
        ),
        (
            "intervals",
            f"{RESAMPLES:,} bootstrap resamples of the test images, the same for all runs. They hold the trained "
            f"networks fixed{reseeded(runs)}. Images that are alike (one emoji by two vendors, parts of one "
            "photograph) count as independent, so intervals are somewhat narrow",
        ),
        *((("noted by hand", NOTED),) if scale.name == FIRST else ()),
    ]
    return f"""# How small a cache may be

How many views, bits and tokens must a cache keep before the student suffers? `make study` measures it on real teachers
and images, and writes this page from [results.jsonl](../benchmarks/study/results.jsonl); all but one row
of remarks is made from them. The plan is in [runs.py](../benchmarks/study/runs.py), the sizes are in
[scales.py](../benchmarks/study/scales.py).

{table(("", ""), rows)}

Held-out losses are against float16 targets: of new views of the trained images, and of images never seen. k-NN has 20
neighbours and is leave-one-out; `all` takes the test images of {", ".join(QUICK["knn"])} together.
mIoU is that of a linear layer on patch tokens after {scale.head_steps:,} steps. The mean of tasks is that of k-NN on
each of these sets and mIoU.
Differences are above 0 where a run is better than its reference: losses in percent of the reference's, the others in
points of 100."""


def reseeded(runs: Mapping[str, Sequence[Line]]) -> str:
    """What a second seed alone changes, by the runs that have one: rows of one seed do not include it."""
    found = [
        f"`{name}` by {abs(over[LOSS]['value']):.1f} % of the loss, {abs(over[KNN]['value']):.1f} points of k-NN and "
        f"{abs(over[MIOU]['value']):.1f} of mIoU"
        for name in (ONLINE, PAPER)
        for line in runs.get(name, ())
        if (over := line.figures["differences"].get(name))
    ]
    return f", and what a seed changes comes on top: another one alone moved {', '.join(found)}" if found else ""


def margins() -> str:
    """The margins in words."""
    names = {"loss": "held-out loss", **TITLES}
    units = {name: "%" if name == "loss" else "point" if within == 1 else "points" for name, within in MARGINS.items()}
    return ", ".join(f"{names[name]} {within:g} {units[name]}" for name, within in MARGINS.items())
