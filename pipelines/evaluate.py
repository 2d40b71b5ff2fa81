"""What encoders are worth: cached teachers, networks that run here, students, and the same networks untrained.

    images -> center views -> features, once per encoder -> tasks -> intervals, gains over the best teacher

Every image is seen once, under the `center` view. Cached teachers do not run: their tokens are read from the cache and
de-standardized, since their users compare features in the teacher's own space.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from pipelines.command.caches import opened
from pipelines.command.device import device_words, pick_device
from pipelines.command.environment import say_surroundings
from pipelines.command.printing import print_table, results
from pipelines.command.progress import Progress, begins, say
from pipelines.command.sizes import tell_student
from pipelines.evaluating.analysis import analysed, with_pruned
from pipelines.evaluating.comparison import Result, compare, neighbours
from pipelines.evaluating.encoders import RANDOM, STUDENT, TEACHER, Encoder, compared, view_size
from pipelines.evaluating.features import KeptFeatures, features, set_name
from pipelines.evaluating.labelled import LabelledShards, Usable, check_apart, labelled, twins
from pipelines.evaluating.measuring import NEEDS, DenseLabels, Measured, allowed, measure
from pipelines.evaluating.training_images import history, trained_on, unknown
from pipelines.training.training_set import Snapshot
from unic_cache.ahead import thread_pool
from unic_cache.cache import Cache
from unic_cache.config import EvaluateConfig, Views
from unic_cache.errors import CacheError, ConfigError, ShardError
from unic_cache.evaluate.tables import TaskResult, gain_table, score_table
from unic_cache.files.local import LocalFolder
from unic_cache.store.calibrate import to_teacher
from unic_cache.store.commit import CommitRecord
from unic_cache.stream.decoder_probe import check_pixels
from unic_cache.stream.pixels import ShardPixels
from unic_cache.views.classes import check_classes, classes_beside
from unic_cache.views.index import NO_LABEL


def run(config: EvaluateConfig) -> Result:
    """Features of every encoder for the labelled images, then each task: test against train, or within one set."""
    if config.out is not None:
        check_out(Path(config.out))

    # Encoders: the cached teachers, networks, untrained students, and the students
    device = pick_device(config.device)
    cache = None if config.cache is None else opened(config.cache)
    encoders = compared(config, cache, device)
    views = Views("center", view_size(config, cache, encoders), 0)

    # Images: the labelled ones of one or two sets of tars
    one, two = [("--shards", config.shards)], [("--train", config.train), ("--test", config.test)]
    sets = [labelled(str(pattern), cache, flag) for flag, pattern in (two if config.shards is None else one)]
    check_sets(sets)
    tasks = allowed(config.task, sets)
    announce(config, device, encoders, views.size, sets, tasks)
    for encoder in encoders:
        if encoder.input_size is not None and encoder.kind != RANDOM:
            tell_student(views.size, encoder.input_size, encoder.name)

    with thread_pool(config.threads) as pool, feature_folder(config) as folder:
        # Features: of the same images for every encoder, and for students without their smallest weights
        everyone = with_pruned(encoders, device) if config.analysis else encoders
        usable = [
            Usable(images, records_of(cache, encoders, views, images), ShardPixels(views, images.tars, pool))
            for images in sets
        ]
        dense = any(task in NEEDS for task in tasks) or config.analysis
        kept = [features_of(config, cache, one, everyone, folder, dense, pool, device) for one in usable]
        own = {one.name: [found[one.name] for found in kept] for one in everyone}

        # Tasks: every encoder on the same test images
        bar = Progress("measure", len(tasks) * len(encoders), "results")
        with label_folder(folder) as place, bar:
            labels = DenseLabels(place, pool)
            found = {task: measure(task, config, usable, own, encoders, labels, device, bar) for task in tasks}
        measured = {task: one for task, one in found.items() if one is not None}
        if not measured:
            raise ShardError(f"{sets[-1].pattern}: nothing can be measured: {', '.join(tasks)} had to be left out")
        analysis = analysed(config, usable, own, encoders, device) if config.analysis else {}
    result = gathered(config, cache, encoders, own, usable, measured, analysis)
    if config.out is not None:
        write_json(config.out, result)
    return result


def gathered(
    config: EvaluateConfig,
    cache: Cache | None,
    encoders: Sequence[Encoder],
    features: Mapping[str, Sequence[KeptFeatures]],
    usable: Sequence[Usable],
    measured: Mapping[str, Measured],
    analysis: Mapping[str, Mapping[str, object]],
) -> Result:
    """Everything that was found, with intervals."""
    dims = {name: int(found[-1].summary_ND.shape[1]) for name, found in features.items()}
    how = config.seed, config.bootstrap
    first = measured.get("knn") or next(iter(measured.values()))
    runs = {one: history(one, snapshot_of) for one in (config.encoder if cache is not None else ())}
    return Result(
        k=config.k,
        images=first.images,
        classes=first.classes,
        encoders=neighbours(measured["knn"], encoders, dims, config.k, *how) if "knn" in measured else (),
        left_out=sum(len(one.left_out) for one in usable),
        twins=len(twins(usable[0], usable[-1])),
        trained_on=max((trained_on(run, cache, usable[-1]) for run in runs.values()), default=0),
        rows=[(one.name, one.kind, one.made_of, dims[one.name]) for one in encoders],
        tasks={task: compared_in(task, one, encoders, *how) for task, one in measured.items()},
        analysis=analysis,
        remarks=[*unknown(runs, cache, usable[-1]), *fidelities(encoders)],
        weights={one.name: one.identity["weights"] for one in encoders if one.kind == STUDENT},
    )


def snapshot_of(run: Path) -> Snapshot | None:
    """A run's snapshot, if it can be read."""
    with contextlib.suppress(ConfigError):
        return Snapshot.load(run)
    return None


def compared_in(task: str, measured: Measured, encoders: Sequence[Encoder], seed: int, resamples: int) -> TaskResult:
    """As `compare`; a ConfigError names the task."""
    try:
        return compare(measured, encoders, seed, resamples)
    except ConfigError as error:
        raise ConfigError(f"{task}: {error}, or name the other tasks with --task") from error


def show(result: Result) -> None:
    """Print the tables, for people."""
    counts = ", ".join(f"{task} {one.images} test images" for task, one in result.tasks.items())
    title = f"{counts}; k-NN of {result.k} neighbours" if "knn" in result.tasks else counts
    print_table(results(), score_table(result.rows, result.tasks, result.encoders, title))
    gains = gain_table(result.rows, result.tasks)
    if gains is not None:
        print_table(results(), gains)
    for line in result.notes():
        say(line)


def check_out(path: Path) -> None:
    """ConfigError, before anything is measured, if --out cannot become a file."""
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder; name the file to write")
    above = next(one for one in path.absolute().parents if one.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(f"--out {path}: {above} is {'not writable' if above.is_dir() else 'a file'}; name another")


def write_json(path: str, result: Result) -> None:
    """Write what `--json` prints."""
    target = Path(path)
    LocalFolder(target.parent).replace(target.name, (json.dumps(result.to_json(), indent=1) + "\n").encode())


@contextlib.contextmanager
def feature_folder(config: EvaluateConfig) -> Iterator[Path]:
    """Where features are kept: as asked, or a folder that goes with the run."""
    if config.features is not None:
        yield Path(config.features)
        return
    with tempfile.TemporaryDirectory(prefix="unic-cache-features-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def label_folder(features: Path) -> Iterator[Path]:
    """A folder of this run's own for masks and depth maps, beside the features unless nothing can be written there."""
    beside = features if os.access(features, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="unic-cache-labels-", dir=beside) as folder:
        yield Path(folder)


def features_of(
    config: EvaluateConfig,
    cache: Cache | None,
    usable: Usable,
    encoders: Sequence[Encoder],
    folder: Path,
    dense: bool,
    pool: ThreadPoolExecutor,
    device: torch.device,
) -> dict[str, KeptFeatures]:
    """Every encoder's features of a set, whose name is needed only where they outlive the run."""
    if cache is not None:
        check_pixels(cache.location, usable.source, 0)
    wanted = usable.images.wanted
    name = f"set-{id(usable)}" if config.features is None else set_name(usable.source, wanted, pool)
    return features(usable, encoders, folder / name, dense, config.batch_size, device)


def check_sets(sets: Sequence[LabelledShards]) -> None:
    """ShardError if a tar is in both sets, or if two folders number their classes differently."""
    if len(sets) == 2:
        check_apart(*sets)
    labelled_tars = [
        path for images in sets for path, entry in images.tars.values() if any(one != NO_LABEL for one in entry.labels)
    ]
    numbered = classes_beside(labelled_tars)
    check_classes(numbered)
    trusted = sorted(folder or "." for folder, names in numbered.items() if names is None)
    if trusted:
        say(f"the labels in {', '.join(trusted)} are trusted to mean the same: there is no classes.json")


def announce(
    config: EvaluateConfig,
    device: torch.device,
    encoders: Sequence[Encoder],
    size: int,
    sets: Sequence[LabelledShards],
    tasks: Sequence[str],
) -> None:
    """Say what is about to be done; `size` is the views', in pixels."""
    begins(
        "evaluate",
        f"{', '.join(tasks)} of {', '.join(one.name for one in encoders)} on {device_words(device)}",
        f"{' + '.join(f'{len(images.wanted):,}' for images in sets)} images, center views of {size} px",
        f"batch {config.batch_size}",
    )
    say_surroundings()
    resized = [f"{one.name} ({one.input_size} px)" for one in encoders if one.input_size not in {None, size}]
    if resized:
        say(f"views of {size} px are resized to the input of {', '.join(resized)}; --size sets the views' size")
    candidates = int(sets[0].classed.sum()) - (len(sets) == 1)
    if "knn" in tasks and config.k > candidates:
        say(f"k is {config.k}, but there are only {candidates} neighbours: all of them vote")


def records_of(
    cache: Cache | None, encoders: Sequence[Encoder], views: Views, images: LabelledShards
) -> dict[tuple[int, int], list[CommitRecord]]:
    """Each tar's commit records under the center view, one per cached teacher."""
    if cache is None:
        return {}
    teachers = [one.cached for one in encoders if one.cached is not None]
    found = {place: [teacher.record(cache.unit(*place, views)) for teacher in teachers] for place in images.tars}
    for place, records in found.items():
        for teacher, record in zip(teachers, records, strict=True):
            if record is None:
                raise CacheError(
                    f"{cache.location.url}: {teacher.name} has no center view of {views.size} px of "
                    f"{images.tars[place][0]}; run `unic-cache extract --recipe center --views 1 --size {views.size}` "
                    "with these tars, or leave --size out"
                )
    return {place: [record for record in records if record is not None] for place, records in found.items()}


def fidelities(encoders: Sequence[Encoder]) -> list[str]:
    """How near the cached features are to what the teachers said; estimated of a recoded cache."""
    lines = []
    for one in encoders:
        if one.kind == TEACHER and one.cached is not None and one.cached.calibration.fidelity:
            spec = one.cached.spec
            found = to_teacher(one.cached.calibration.fidelity, spec)
            how = ", estimated over its recodings," if spec["provenance"].get("recoded_from") else ""
            parts = ", ".join(f"{kind} {cosine:.4f}" for kind, cosine in found.items())
            lines.append(f"{one.name} is read from the cache: mean cosine to its own features{how} {parts}")
    return lines
