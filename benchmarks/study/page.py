"""docs/STUDY.md and its figures, from results.jsonl and the plan alone: equal lines give equal bytes."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.study.figures import figures
from benchmarks.study.goals import goals
from benchmarks.study.markdown import spans, table, title
from benchmarks.study.measure import MEAN
from benchmarks.study.opening import opening
from benchmarks.study.packages import PACKAGES
from benchmarks.study.results import Line
from benchmarks.study.runs import (
    EVERY,
    ONLINE,
    PAPER,
    STARTS,
    UNTRAINED_RANDOM,
    UNTRAINED_START,
    plan,
    teacher_run,
)
from benchmarks.study.scales import FIRST, Scale
from benchmarks.study.verdicts import BETTER, DECIDING, TASKS, margin, outcome_of_seeds, verdict
from unic_cache.files.local import LocalFolder
from unic_cache.teachers.catalog import resolve

DOCS = Path(__file__).parent.parent.parent / "docs"
NONE = "-"

Runs = Mapping[str, Sequence[Line]]  # name -> its lines, by seed


def places(scale: Scale) -> tuple[str, str]:
    """The page and the folder of its figures, in docs/: each scale has its own."""
    end = "" if scale.name == FIRST else f"-{scale.name}"
    return f"STUDY{end}.md", f"study{end}"


def write_page(scale: Scale, lines: Sequence[Line], docs: Path = DOCS) -> None:
    """Write the page and its figures into `docs`; figures that the lines no longer give are removed."""
    for path in (docs / places(scale)[1]).glob("*.svg"):
        path.unlink()
    for name, data in pages(scale, lines).items():
        path = docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        LocalFolder(path.parent).replace(path.name, data)


def pages(scale: Scale, lines: Sequence[Line]) -> dict[str, bytes]:
    """File under docs/ -> its content."""
    runs, (page, folder) = by_name(scale, lines), places(scale)
    pictures = figures(runs)
    links = [f"![{one.alt}]({folder}/{one.name}.svg)\n\n{one.caption}" for one in pictures]
    parts = [
        opening(scale, runs),
        "## Goals\n\n" + table(("goal", "result", ""), goals(runs, waiting(scale, lines))),
        "## Teachers and images\n\n" + described(runs),
        "## What the teachers are worth\n\n" + started(scale) + scores(runs, references(scale, runs), everything()),
        "## The claim\n\n" + claim(scale, runs),
        "## UNIC's ablations\n\n" + paper(runs),
        "## Views, quality and tokens\n\n" + storage(runs),
        *(["## Figures\n\n" + "\n\n".join(links)] if links else []),
        "## Left to run\n\n" + listed(waiting(scale, lines)),
    ]
    files = {page: ("\n\n".join(parts) + "\n").encode()}
    return files | {f"{folder}/{one.name}.svg": one.svg for one in pictures}


def by_name(scale: Scale, lines: Sequence[Line]) -> Runs:
    """The lines of a scale by run, in the plan's order, and by seed."""
    own = sorted((line for line in lines if line.settings["scale"] == scale.name), key=lambda one: (one.run, one.seed))
    planned = dict.fromkeys(run.name for run in plan(scale, own))
    found: dict[str, list[Line]] = {name: [] for name in [*planned, *(line.run for line in own)]}
    for line in own:
        found[line.run].append(line)
    return {name: lines for name, lines in found.items() if lines}


def described(runs: Runs) -> str:
    """What each teacher and each labelled set is, as the runs that measured them were told, and all packages."""
    lines = [line for own in runs.values() for line in own if "sets" in line.figures]
    teachers = [(f"`{line.run}`", line.figures["teacher"]) for line in lines if "teacher" in line.figures]
    sets = {name: about for line in lines for name, about in line.figures["sets"].items()}
    rows = [*teachers, *((f"`{name}`, labelled, never distilled", about) for name, about in sets.items())]
    packages = [(one.name, one.version, one.registry, one.licence, one.use) for one in PACKAGES.values()]
    parts = [table(("", "what it is"), rows)] if rows else []
    return "\n\n".join([*parts, table(("package", "version", "from", "licence", "used for"), packages)])


def everything() -> list[str]:
    """All measures of all tasks, without those that combine several."""
    return [f"{task}/{name}" for task, sets in EVERY.items() for name in sets]


def references(scale: Scale, runs: Runs) -> list[str]:
    """The runs that train nothing, and the claim's students."""
    names = [*(teacher_run(name) for name in scale.teachers), *STARTS.values(), *STARTS]
    return [name for name in names if name in runs]


def started(scale: Scale) -> str:
    """Why the untrained student differs from the teacher whose weights it has."""
    rules = sorted({*resolve(scale.start).summary_rules.values(), *resolve(scale.start).grid_rules.values()})
    return (
        f"`{UNTRAINED_START}` has the weights of `{teacher_run(scale.start)}`. A student is read at its last block; "
        f"this teacher gives the features of `{'` and `'.join(rules)}`. `{UNTRAINED_RANDOM}` has random weights. They "
        f"are the students `{'` and `'.join(STARTS)}` before training.\n\n"
    )


def scores(runs: Runs, names: Sequence[str], measures: Sequence[str]) -> str:
    """One row per measure and one column per run, means over seeds; the best of each row in bold."""
    if not names:
        return "Not run yet."
    rows = []
    for measure in measures:
        found = {
            name: fmean(line.figures["scores"][measure]["value"] for line in runs[name])
            for name in names
            if all(measure in line.figures["scores"] for line in runs[name])
        }
        best = max(found.values(), default=None)
        cells = [f"{found[name]:.1f}" if name in found else NONE for name in names]
        bold = [
            f"**{text}**" if name in found and found[name] == best else text
            for name, text in zip(names, cells, strict=True)
        ]
        images = next(
            (
                line.figures["test_images"][measure]
                for name in names
                for line in runs[name]
                if measure in line.figures["test_images"]
            ),
            0,
        )
        rows.append((title(measure), f"{images:,}", *bold))
    return table(("measure", "test images", *(f"`{name}`" for name in names)), rows)


def claim(scale: Scale, runs: Runs) -> str:
    """Both students against the best teacher of each measure and against its untrained start, seed by seed."""
    teachers = [teacher_run(name) for name in scale.teachers if teacher_run(name) in runs]
    parts = []
    for name, start in STARTS.items():
        if name not in runs or len(teachers) < len(scale.teachers):
            parts.append(f"`{name}`: not run yet.")
            continue
        rows = []
        for measure in everything():
            best = max(teachers, key=lambda one: runs[one][0].figures["scores"][measure]["value"])
            pairs = [line.figures["differences"][best][measure] for line in runs[name]]
            over = [line.figures["differences"][start][measure] for line in runs[name]]
            origin = [line.figures["differences"][teacher_run(scale.start)][measure] for line in runs[name]]
            value = fmean(line.figures["scores"][measure]["value"] for line in runs[name])
            verdicts = " / ".join(dict.fromkeys(verdict(one, margin(measure)) for one in pairs))
            cells = f"{value:.1f}", f"`{best}`", spans(pairs), verdicts, spans(over), spans(origin)
            rows.append((title(measure), *cells))
        seeds = ", ".join(str(line.seed) for line in runs[name])
        head = (
            "measure",
            "student, mean",
            "best teacher",
            "over it, each seed (95 %)",
            "verdict",
            f"over `{start}`",
            f"over `{teacher_run(scale.start)}`",
        )
        parts.append(f"`{name}`, seeds {seeds}:\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def paper(runs: Runs) -> str:
    """Each change against UNIC as published."""
    names = [name for name in runs if name.startswith("paper/")]
    if not names:
        return "Not run yet."
    measures = (*DECIDING, MEAN)
    decide = {name: DECIDING if "standardize" not in runs[name][0].settings["distill"] else TASKS for name in names}
    rows = [
        (f"`{name}`", *values(runs[name], PAPER, measures), result(runs[name], PAPER, decide[name])) for name in names
    ]
    return (
        f"Differences from `{PAPER}`: the ladder, dropping over the batch, both kinds of tokens, projectors of their "
        "own for each kind, targets standardized by channel, all teachers. Every loss is taken of targets standardized "
        "by channel, which `paper/targets-*` did not learn: of these, k-NN and mIoU alone decide.\n\n"
        + table(("run", *map(title, measures), "verdict"), rows)
        + gains_over(PAPER, {name: runs[name] for name in names})
    )


def gains_over(reference: str, runs: Runs) -> str:
    """The deciding measures of each run that are better than the reference's, if by every seed of that."""
    found = []
    for name, lines in runs.items():
        over = [line.figures["differences"].get(reference, {}) for line in lines if name != reference]
        whole = len(over) == len(runs[reference])
        better = [
            title(measure)
            for measure in DECIDING
            if whole and all(measure in one and verdict(one[measure], margin(measure)) == BETTER for one in over)
        ]
        found += [f"`{name}` ({' and '.join(better)})"] * bool(better)
    return f"\n\nBetter than `{reference}` by every seed: {'; '.join(found)}." if found else ""


def storage(runs: Runs) -> str:
    """Each way to store the features against online."""
    names = [name for name in runs if name.startswith("cache/")]
    if not names:
        return "Not run yet."
    rows = []
    for name in names:
        own = runs[name][0]
        kept, views = own.figures["bytes"], own.settings["distill"]["views"]
        size = (f"{kept['view']:,.0f}", f"{kept['ratio']:.1f}x", f"{kept['view'] * views / 1e3:,.0f}")
        rows.append((f"`{name}`", str(views), *size, *values(runs[name], ONLINE, DECIDING), result(runs[name], ONLINE)))
    head = ("run", "views", "bytes per view", "under f16", "kB per image", *map(title, DECIDING), "verdict")
    return f"Differences from `{ONLINE}`, all teachers, features only.\n\n{table(head, rows)}"


def values(lines: Sequence[Line], reference: str, measures: Iterable[str]) -> list[str]:
    """The differences of every seed from a reference; of the reference itself, each seed's own score."""
    cells = []
    for measure in measures:
        pairs = [
            line.figures["differences"][reference][measure]
            for line in lines
            if measure in line.figures["differences"].get(reference, {})
        ]
        own = [line.figures["scores"][measure]["value"] for line in lines if measure in line.figures["scores"]]
        if lines[0].run == reference:
            shown = ", ".join(f"{one:.4g}" for one in own) or NONE
            cells.append(f"{shown}; second seed {spans(pairs)}" if pairs else shown)
        else:
            cells.append(spans(pairs) if pairs else NONE)
    return cells


def result(lines: Sequence[Line], reference: str, measures: Sequence[str] = DECIDING) -> str:
    """The verdict over all seeds."""
    return "reference" if lines[0].run == reference else outcome_of_seeds(lines, reference, measures)


def waiting(scale: Scale, lines: Sequence[Line]) -> Mapping[str, Sequence[str]]:
    """The runs of the plan without a line: name -> seeds."""
    done = {line.key for line in lines}
    left: dict[str, list[str]] = defaultdict(list)
    for run in plan(scale, lines):
        if (scale.name, run.name, run.seed) not in done:
            left[run.name].append(str(run.seed))
    return left


def listed(left: Mapping[str, Sequence[str]]) -> str:
    """What is left to run."""
    if not left:
        return "Nothing is left of the plan."
    rows = [(f"`{name}`", ", ".join(seeds)) for name, seeds in left.items()]
    return table(("run", "seeds"), rows)
