"""The goals of the study, and what the lines say of each: met, missed, cannot tell, or not yet."""

from collections.abc import Collection, Mapping, Sequence

from benchmarks.study.measure import ALL_KNN, MEAN
from benchmarks.study.results import Line
from benchmarks.study.runs import NEITHER, ONLINE, PAPER, STARTED, UNTRAINED_START, teacher_run
from benchmarks.study.verdicts import ACCEPTED, UNKNOWN, WORSE, margin, outcome_of_seeds, verdict

MET, MISSED, NOT_YET = "met", "missed", "not yet"
SMALLER, MOST_VIEWS = 24.0, 10
IMAGENET = 1_281_167  # training images of ImageNet-1K
F16_VIEW = 4 * (14 * 14 + 1) * 768 * 2  # bytes of a view of 224 px by four ViT-B/16 in float16
TB = 1e12

Runs = Mapping[str, Sequence[Line]]
Row = tuple[str, str, str]  # the goal, the result in words, and whether it is met


def goals(runs: Runs, left: Collection[str] = ()) -> list[Row]:
    """All goals in order. `left` are the names of runs without a line.

    A goal is open as long as they may change it. Every seed counts, so more lines can make a goal missed, and cannot
    undo that; only of storage another setting may meet it.
    """
    hopeful = any(may_be_small_enough(runs, name) for name in left)
    return [
        unless_open(student(runs), STARTED in left),
        unless_open(ideas(runs), bool({PAPER, NEITHER} & set(left))),
        *((goal, text, NOT_YET if hopeful else met) for goal, text, met in storage(runs)),
    ]


def unless_open(row: Row, waiting: bool) -> Row:
    """The row, not decided while it waits for runs unless it is missed already."""
    goal, text, met = row
    return goal, text, NOT_YET if waiting and met != MISSED else met


def may_be_small_enough(runs: Runs, name: str) -> bool:
    """Whether a run that has no line yet may still show a setting to be as small as the goal, and equal.

    What was kept in the same way for another number of views, or with another seed, tells how small it is.
    """
    if not name.startswith("cache/"):
        return False
    if outcome_of_seeds(runs.get(name, ()), ONLINE) == WORSE:
        return False
    _, _, kept = name.partition("-views-")
    ratios = [
        own[0].figures["bytes"]["ratio"] for other, own in runs.items() if kept and other.endswith(f"-views-{kept}")
    ]
    return not ratios or max(ratios) >= SMALLER


def student(runs: Runs) -> Row:
    """The started student against the best teacher of each measure and against its untrained self, by every seed."""
    goal = (
        "student started from a teacher: on no task below the best teacher by more than the margin, above it on at "
        "least half; gain over the untrained start on all"
    )
    lines = runs.get(STARTED, ())
    teachers = [name for name in runs if name.startswith("teachers/")]
    if not lines or not teachers:
        return goal, "not run yet", NOT_YET
    scored = lines[0].figures["scores"]
    measures = [name for name in scored if not name.startswith("loss") and name not in {ALL_KNN, MEAN}]
    above, below, unsure, gained, improved = [], [], [], [], []
    origin = teacher_run(lines[0].settings["distill"]["init"])
    for measure in measures:
        best = max(teachers, key=lambda one: runs[one][0].figures["scores"].get(measure, {"value": 0.0})["value"])
        over = [line.figures["differences"][best][measure] for line in lines]
        start = [line.figures["differences"][UNTRAINED_START][measure] for line in lines]
        above += [measure] * all(one["low"] > 0 for one in over)
        gained += [measure] * all(one["low"] > 0 for one in start)
        improved += [measure] * all(line.figures["differences"][origin][measure]["low"] > 0 for line in lines)
        if any(verdict(one, margin(measure)) == WORSE for one in over):
            below.append(measure)
        elif any(one["low"] <= -margin(measure) for one in over):
            unsure.append(measure)
    text = (
        f"of {len(measures)} measures, by the intervals of every seed: above the best teacher on {len(above)}; below "
        f"it by more than the margin on {len(below)}{_listed(below)}; perhaps so on {len(unsure)}{_listed(unsure)}; "
        f"gain over the untrained start on {len(gained)}, and over the teacher that it started from, read at its best "
        f"block, on {len(improved)}"
    )
    if below or 2 * len(above) < len(measures) or len(gained) < len(measures):
        return goal, text, MISSED
    return goal, text, UNKNOWN if unsure else MET


def ideas(runs: Runs) -> Row:
    """UNIC's ladder and dropping against neither."""
    goal = "ladder and dropping against neither: better on the mean of tasks by more than the interval"
    pairs = [
        line.figures["differences"][PAPER][MEAN]
        for line in runs.get(NEITHER, ())
        if MEAN in line.figures["differences"].get(PAPER, {})
    ]
    if not pairs:
        return goal, "not run yet", NOT_YET
    each = "; ".join(f"{-one['value']:+.2f} ({-one['high']:+.2f} to {-one['low']:+.2f})" for one in pairs)
    better = all(one["high"] < 0 for one in pairs)
    return (
        goal,
        f"points, each seed: {each}{'' if better else '; at this size they are not'}",
        MET if better else MISSED,
    )


def storage(runs: Runs) -> list[Row]:
    """The cheapest setting that held, and ImageNet-1K at it."""
    first = (
        f"cheapest setting equal to online within the margins: at least {SMALLER:g}x under f16 of all tokens with at "
        f"most {MOST_VIEWS} views"
    )
    second = f"{MOST_VIEWS} views of ImageNet-1K from four ViT-B at that setting: under 0.65 TB"
    tried = {name: lines for name, lines in runs.items() if name.startswith("cache/") and name != ONLINE}
    if not tried:
        return [(first, "not run yet", NOT_YET), (second, "not run yet", NOT_YET)]
    held = {
        name: lines[0].figures["bytes"]["ratio"]
        for name, lines in tried.items()
        if outcome_of_seeds(lines, ONLINE) in ACCEPTED and lines[0].settings["distill"]["views"] <= MOST_VIEWS
    }
    if not held:
        text = f"of {len(tried)} settings, none with at most {MOST_VIEWS} views has held"
        return [(first, text, MISSED), (second, text, MISSED)]
    best = max(held, key=lambda name: held[name])
    a_view = F16_VIEW * IMAGENET / held[best] / TB
    bytes_kept, views = MOST_VIEWS * a_view, tried[best][0].settings["distill"]["views"]
    return [
        (first, f"`{best}`: {held[best]:.1f}x{an_image(runs, best)}", MET if held[best] >= SMALLER else MISSED),
        (
            second,
            f"{bytes_kept:.2f} TB, if their features shrink as these teachers' do; "
            f"the {views} views of that setting are {views * a_view:.2f} TB",
            MET if bytes_kept < 0.65 else MISSED,
        ),
    ]


def an_image(runs: Runs, name: str) -> str:
    """The bytes of an image with all its views, and of one online."""
    kept = [
        line.figures["bytes"]["view"] * line.settings["distill"]["views"] / 1e3
        for line in (runs[name][0], *runs.get(ONLINE, ())[:1])
    ]
    return f", {kept[0]:,.0f} kB per image" + "".join(f", where online would store {one:,.0f}" for one in kept[1:])


def _listed(measures: Sequence[str]) -> str:
    return f" ({', '.join(measures)})" if measures else ""
