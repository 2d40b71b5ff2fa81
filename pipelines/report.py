"""Draw what runs and evaluations found: one self-contained page, and its figures as files.

runs' logs, JSON of `evaluate`, a cache -> figures and tables -> OUT/index.html, OUT/figures/
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.command.caches import opened
from pipelines.command.failures import reason
from pipelines.command.preflight import DEFAULT_SHARDS
from pipelines.command.progress import begins, say
from pipelines.reporting.costs import cache_table, run_table
from pipelines.reporting.folder import check_free, write_page
from pipelines.reporting.inputs import Run, sorted_inputs
from pipelines.reporting.token_maps import token_figure
from pipelines.training.training_set import Snapshot
from unic_cache.cache import Cache
from unic_cache.config import ReportConfig
from unic_cache.errors import CacheError, ConfigError, UnicCacheError
from unic_cache.evaluate.comparisons import gain_figure, score_tables, task_figure
from unic_cache.evaluate.curves import coefficient_figure, knn_figure, loss_figure
from unic_cache.evaluate.drawing import Picture
from unic_cache.evaluate.feature_use import curve_figure, dimension_figure
from unic_cache.evaluate.page import Page, Section
from unic_cache.evaluate.results import Evaluation
from unic_cache.stream.sealed_rows import learned_from
from unic_cache.student.run_files import ENCODER

JSON = "a file of `unic-cache evaluate --json`"
TITLE = "What the students are worth"
HOURS = "Hours are sums of the log's rates: time at work, validation included."


def run(config: ReportConfig) -> Path:
    """Write the page; return its path. What cannot be drawn for lack of data is named in it, and on stderr."""
    # Inputs: runs, evaluations, and the cache that the runs read
    check_free(config.out)
    runs, evaluations = sorted_inputs(config.inputs)
    begins("report", f"{len(runs)} runs, {len(evaluations)} evaluations", f"into {config.out}")
    missing: list[str] = []
    cache = find_cache(config, runs, missing)

    # Figures and tables of what is there
    tokens = draw_tokens(config, runs, cache, missing)
    costs = [table for table in (cache and cache_table(cache), run_table(runs)) if table]
    tables = [table for one in evaluations for table in score_tables(one)]
    sections = [
        Section("Tasks", notes(evaluations), task_figures(evaluations, missing), tables),
        Section("Training", "", training_figures(runs, missing)),
        Section("Patch tokens", "", tokens),
        Section("Use of weights and features", "", use_figures(evaluations, missing)),
        Section("Bytes and hours", HOURS, (), costs),
    ]

    # Page
    for line in missing:
        say(f"not shown: {line}")
    shown = [section for section in sections if section.pictures or section.tables]
    return write_page(config.out, Page(TITLE, described(runs, evaluations), shown, missing))


def notes(evaluations: Sequence[Evaluation]) -> str:
    """What the scores do not say: test images that were trained on, and how near cached features are to a teacher's."""
    return " ".join(f"{one.label}: {'. '.join(one.notes)}." for one in evaluations if one.notes)


def task_figures(evaluations: Sequence[Evaluation], missing: list[str]) -> list[Picture]:
    """Gains, and task against task."""
    figures = {
        f"gains over the best teacher; needs {JSON} with a student, and teachers from --cache": gain_figure(
            evaluations
        ),
        f"task against task; needs {JSON} with a student on two tasks": task_figure(evaluations),
    }
    return there(figures, missing)


def training_figures(runs: Sequence[Run], missing: list[str]) -> list[Picture]:
    """Losses, coefficients and k-NN by step."""
    trainings = [one.training for one in runs]
    figures = {
        "loss per teacher; needs the folder of a run": loss_figure(trainings),
        "teacher coefficients; needs the folder of a run": coefficient_figure(trainings),
        "k-NN while training; needs a run of `unic-cache distill --knn-shards P`": knn_figure(trainings),
    }
    return there(figures, missing)


def use_figures(evaluations: Sequence[Evaluation], missing: list[str]) -> list[Picture]:
    """Principal dimensions, pruning and components."""
    figures = {
        f"principal dimensions; needs {JSON} made with --analysis": dimension_figure(evaluations),
        f"pruning and components; needs {JSON} made with --analysis, with a student": curve_figure(evaluations),
    }
    return there(figures, missing)


def there(figures: Mapping[str, Picture | None], missing: list[str]) -> list[Picture]:
    """The figures that there are; the names of the others go to `missing`."""
    missing += [name for name, figure in figures.items() if figure is None]
    return [figure for figure in figures.values() if figure is not None]


def described(runs: Sequence[Run], evaluations: Sequence[Evaluation]) -> str:
    """What the page is made from."""
    parts = [
        f"{what}: {', '.join(one.label for one in ones)}"
        for what, ones in (("runs", runs), ("evaluations", evaluations))
        if ones
    ]
    return "Made by unic-cache report from " + "; ".join(parts) + "."


def find_cache(config: ReportConfig, runs: Sequence[Run], missing: list[str]) -> Cache | None:
    """The cache that was named, or else the first run's, if it is still there and still the same."""
    if config.cache is not None:
        return opened(config.cache)
    hint = "bytes of the cache, and patch tokens; needs --cache CACHE"
    read = next((one for one in runs if not one.settings.online), None)
    if read is None:
        missing.append(f"{hint} (no run that read one was given)")
        return None
    try:
        cache = opened(read.settings.cache)
        check_same(cache, read)
    except (UnicCacheError, OSError) as error:
        missing.append(f"{hint} ({reason(error)})")
        return None
    return cache


def check_same(cache: Cache, run: Run) -> None:
    """CacheError unless the cache has a record of each teacher that the run read: another may lie under its name."""
    snapshot = Snapshot.load(run.folder)
    shown = snapshot.views, snapshot.numbers, snapshot.train
    for name in snapshot.teachers:
        if not learned_from(snapshot.records, cache, cache.teacher(name), *shown):
            raise CacheError(f"{cache.location.url} is not the cache that {run.folder} was trained from")


def draw_tokens(config: ReportConfig, runs: Sequence[Run], cache: Cache | None, missing: list[str]) -> list[Picture]:
    """The PCA figure. What was asked for by a flag raises if it cannot be drawn; the default is only missed."""
    if not config.pictures:
        return []
    if cache is None:
        if config.shards is not None:
            raise ConfigError("--shards names images of a cache, and there is none: add --cache CACHE")
        return []
    exported = [one for one in runs if (one.folder / ENCODER).is_file()]
    missing += [f"patch tokens of {one.label}; needs its {ENCODER}" for one in runs if one not in exported]
    failed: UnicCacheError | None = None
    for pattern in patterns(config, runs, cache):
        try:
            return [token_figure(cache, exported, pattern, config.pictures, config.threads)]
        except UnicCacheError as error:
            failed = error
    assert failed is not None
    if config.cache is not None or config.shards is not None:
        raise failed
    missing.append(f"patch tokens of teachers and students; needs center views and their tars ({failed})")
    return []


def patterns(config: ReportConfig, runs: Sequence[Run], cache: Cache) -> list[str | None]:
    """Where the images may come from, best first: the tars given; or kept views, held-out tars, trained ones."""
    if config.shards is not None:
        return [config.shards]
    kept = [None] if cache.pixels is not None else []
    named = [pattern for one in runs for pattern in (one.settings.val_shards, one.settings.shards) if pattern]
    return [*kept, *dict.fromkeys(named), DEFAULT_SHARDS]
