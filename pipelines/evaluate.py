"""What the features are worth: weighted k-NN of the student, of the same network untrained, and of the cached teachers.

Images are seen once, under the `center` view. Teachers do not run: their CLS tokens are read from the cache and
de-standardized, since cosine neighbours in the teacher's own space are what its users get.

Letters: N images, D channels, B images of a batch.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.command.caches import opened
from pipelines.command.device import device_words, pick_device
from pipelines.command.printing import print_table, results
from pipelines.command.progress import Progress, begins, console, say
from pipelines.command.surroundings import say_surroundings
from pipelines.evaluating.labelled import LabelledShards, Usable, check_apart, labelled, twins
from pipelines.training.training_set import Snapshot
from unic_cache.ahead import ahead, thread_pool
from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import EvaluateConfig, Views
from unic_cache.errors import CacheError
from unic_cache.evaluate.knn import Correct, Interval, bootstrap, knn, knn_leave_one_out, paired_difference
from unic_cache.evaluate.report import Row, result_table
from unic_cache.store.commit import CommitRecord
from unic_cache.stream.address import Address
from unic_cache.stream.pixels import ShardPixels
from unic_cache.stream.probe import check_pixels
from unic_cache.stream.rows import committed_record
from unic_cache.student.backbone import EncoderSpec, build_encoder, embed, prepare
from unic_cache.student.export import load_encoder
from unic_cache.student.run_files import SNAPSHOT
from unic_cache.views.classes import check_classes, classes_beside

BATCHES_AHEAD = 3
ROWS_AT_ONCE = 64  # whose patch tokens are in memory together


@dataclass(frozen=True)
class Encoder:
    """One encoder's result for each k."""

    name: str
    kind: str  # teacher, student or random student
    dim: int
    accuracy: Mapping[int, Interval]
    over_random: Interval | None  # paired difference to the random student, at the table's k


@dataclass(frozen=True)
class Result:
    """All encoders, on the same test images."""

    k: int
    images: int  # tested
    classes: int
    encoders: Sequence[Encoder]
    left_out: int = 0  # labelled images of all sets that cannot be used
    twins: int = 0  # pairs of equal pictures, which were no neighbours
    trained_on: int = 0  # test images that the student was trained on, as far as its run and the cache tell

    def to_json(self) -> dict[str, Any]:
        """The result as JSON-ready data."""
        return dataclasses.asdict(self)

    def notes(self) -> list[str]:
        """What the table does not say."""
        if not self.trained_on:
            return []
        return [
            f"the student was trained on views of {self.trained_on} of these test images, without labels; what was "
            "held out (--val-shards) tells more of other images"
        ]


def show(result: Result) -> None:
    """The table of one k, for people."""
    rows = [Row(e.name, e.kind, e.dim, e.accuracy[result.k], e.over_random) for e in result.encoders]
    title = f"weighted {result.k}-NN, {result.images} test images, {result.classes} classes"
    print_table(results(), result_table(rows, title))
    for note in result.notes():
        say(note)


def run(config: EvaluateConfig) -> Result:
    """Features of all encoders for the labelled shards, then k-NN: test against train, or leave-one-out."""
    device = pick_device(config.device)
    encoder, spec, _ = load_encoder(config.encoder)
    cache = None if config.cache is None else opened(config.cache)
    teachers = [] if cache is None else centered(cache, config.teachers)
    views = Views("center", config.size or cached_size(cache, teachers) or spec.img_size, 0)
    patterns = [config.shards] if config.shards is not None else [config.train, config.test]
    untrained = build_encoder(dataclasses.replace(spec, drop_path=0.0), config.seed).eval()

    features: dict[str, list[Tensor]] = {"random student": [], "student": [], **{t.name: [] for t in teachers}}
    found: list[Usable] = []
    with thread_pool(config.threads) as pool:
        sets = [labelled(str(pattern), cache) for pattern in patterns]
        check_sets(sets)
        begins(
            "evaluate",
            f"student, random student and {len(teachers)} cached teachers on {device_words(device)}",
            f"{' + '.join(f'{len(images.wanted):,}' for images in sets)} images, center views of {views.size} px",
            f"batch {config.batch_size}",
        )
        say_surroundings()
        bank = len(sets[0].wanted) - (len(sets) == 1)
        if config.k > bank:
            say(f"k is {config.k}, but there are {bank} neighbours to ask: all of them vote")
        for images in sets:
            source, records = ShardPixels(views, images.tars, pool), records_of(cache, teachers, views, images)
            if cache is not None:
                check_pixels(cache.location, source, 0)
            models = {"random student": untrained.to(device), "student": encoder.to(device)}
            found.append(Usable(images, records, source))
            for name, values in embeddings(models, spec, found[-1], config.batch_size).items():
                features[name].append(values)
            found[-1].finish()
            for teacher in teachers:
                assert cache is not None
                features[teacher.name].append(cached_features(cache, teacher, views, found[-1].wanted))
        pairs_P2 = twins(found)
    neighbours = tuple(sorted({*config.neighbours, config.k}))
    features = {name: [part.to(device) for part in values] for name, values in features.items()}
    labels = [usable.labels for usable in found]
    correct = {
        name: classify(values, labels, neighbours, config.temperature, pairs_P2) for name, values in features.items()
    }
    result = report(config, features, correct, labels[-1])
    left_out = sum(len(usable.left_out) for usable in found)
    return dataclasses.replace(
        result, left_out=left_out, twins=len(pairs_P2), trained_on=trained_on(config.encoder, cache, sets[-1])
    )


def check_sets(sets: Sequence[LabelledShards]) -> None:
    """ShardError where a tar is in both sets, or where two folders number their classes differently."""
    if len(sets) == 2:
        check_apart(*sets)
    numbered = classes_beside([path for images in sets for path, _ in images.tars.values()])
    check_classes(numbered)
    trusted = sorted(folder or "." for folder, names in numbered.items() if names is None)
    if trusted:
        say(f"taken on trust: what the labels in {', '.join(trusted)} mean, as no classes.json is there")


def records_of(
    cache: Cache | None, teachers: Sequence[CachedTeacher], views: Views, images: LabelledShards
) -> dict[tuple[int, int], list[CommitRecord]]:
    """Of each tar, what the teachers committed under the center view."""
    if cache is None:
        return {}
    return {
        place: [committed_record(cache, teacher, views.name(0), *place) for teacher in teachers]
        for place in images.tars
    }


def trained_on(encoder: str, cache: Cache | None, test: LabelledShards) -> int:
    """How many test images the student was trained on, as far as its run's snapshot and the cache tell."""
    run = Path(encoder) if Path(encoder).is_dir() else Path(encoder).parent
    if cache is None or not (run / SNAPSHOT).is_file():
        return 0
    snapshot = Snapshot.load(run)
    names = {entry.name for _, entry in test.tars.values()} & set(snapshot.train)
    records = [
        teacher.record(cache.unit(*cache.shards()[name], snapshot.views.name(snapshot.numbers[0])))
        for name in names
        for teacher in cache.teachers.values()
    ]
    if not any(record and snapshot.records.get(record.name) == record.checksum for record in records):
        return 0
    return sum(test.tars[item.segment, item.shard][1].name in names for item in test.wanted)


def centered(cache: Cache, names: Sequence[str]) -> list[CachedTeacher]:
    """The teachers named; or all that have a center view, telling which have none."""
    if names:
        return [cache.teacher(name) for name in dict.fromkeys(names)]
    has = {
        name: any(view.startswith("center-") and tars for view, _, tars in cache.committed(teacher.member))
        for name, teacher in cache.teachers.items()
    }
    without = [name for name, found in has.items() if not found]
    if without and any(has.values()):
        console.print(f"left out, as they have no center view: {', '.join(without)}", markup=False, highlight=False)
    return [teacher for name, teacher in cache.teachers.items() if has[name] or not any(has.values())]


def cached_size(cache: Cache | None, teachers: Sequence[CachedTeacher]) -> int | None:
    """The size of the cache's center views; CacheError where there is none or several."""
    if cache is None:
        return None
    found = {
        views.size
        for teacher in teachers
        for view, _, tars in cache.committed(teacher.member)
        for views, number in [Views.parse(view)]
        if tars and views.recipe == "center" and views.seed == 0 and number == 0
    }
    if len(found) != 1:
        listed = ", ".join(str(size) for size in sorted(found)) or "no"
        raise CacheError(
            f"{cache.location.url} has {listed} px center views of its teachers, and one is needed: run "
            "`unic-cache extract --recipe center --views 1` with the labelled shards, or choose one with --size"
        )
    return found.pop()


@torch.inference_mode()
def embeddings(
    models: Mapping[str, torch.nn.Module], spec: EncoderSpec, usable: Usable, size: int
) -> dict[str, Tensor]:
    """Each model's feature (N, D) of every image that can be used; CacheError on pixels that the cache has not seen."""
    wanted, source = usable.images.wanted, usable.source
    starts = range(0, len(wanted), size)
    batches = [wanted[start : start + size] for start in starts]
    found: dict[str, list[Tensor]] = {name: [] for name in models}
    with Progress("evaluate", total=len(wanted), unit="images") as progress:
        made = ahead(batches, lambda group: source.start(group, len(group)), BATCHES_AHEAD)
        for start, group, batch in zip(starts, batches, made, strict=True):
            good = usable.add(start, group, batch)
            for name, model in models.items() if len(good) else ():
                device = next(model.parameters()).device
                images_BCHW = prepare(torch.from_numpy(batch.views_BHWC[good]).to(device), spec)
                found[name].append(embed(model, images_BCHW).cpu())
            progress.advance(len(group))
    return {name: torch.cat(values) if values else torch.zeros(0, 1) for name, values in found.items()}


def cached_features(cache: Cache, teacher: CachedTeacher, views: Views, wanted: Sequence[Address]) -> Tensor:
    """A teacher's own (de-standardized) CLS tokens (N, D); the mean of its patch tokens where it has no CLS."""
    found = []
    for (segment, shard), items in groupby(wanted, lambda item: (item.segment, item.shard)):
        record = committed_record(cache, teacher, views.name(0), segment, shard)
        rows = [item.row for item in items]
        if teacher.codec.cls_dim is not None:
            found.append(teacher.calibration.destandardize({"cls": teacher.cls(record, rows)})["cls"])
            continue
        for start in range(0, len(rows), ROWS_AT_ONCE):
            features = teacher.features(record, rows[start : start + ROWS_AT_ONCE])
            found.append(teacher.calibration.destandardize(features)["patch"].mean(dim=1))
    return torch.cat(found)


def classify(
    features: Sequence[Tensor],
    labels: Sequence[Tensor],
    neighbours: Sequence[int],
    temperature: float,
    twins_P2: Tensor,
) -> dict[int, Correct]:
    """For each k, which test images are classified correctly."""
    if len(labels) == 1:
        return knn_leave_one_out(features[0], labels[0], neighbours, temperature, twins_P2)
    return knn(features[0], labels[0], features[1], labels[1], neighbours, temperature, twins_P2)


def report(
    config: EvaluateConfig,
    features: Mapping[str, Sequence[Tensor]],
    correct: Mapping[str, Mapping[int, Correct]],
    labels_N: Tensor,
) -> Result:
    """Accuracies with bootstrap intervals over the test images, teachers first, the student last."""
    kinds = {"random student": "random student", "student": "student"}
    names = [name for name in features if name not in kinds] + ["random student", "student"]
    encoders = []
    for name in names:
        accuracy = {k: bootstrap(found, config.seed, config.bootstrap) for k, found in correct[name].items()}
        over = None
        if name != "random student":
            over = paired_difference(
                correct[name][config.k], correct["random student"][config.k], config.seed, config.bootstrap
            )
        encoders.append(Encoder(name, kinds.get(name, "teacher"), features[name][0].shape[1], accuracy, over))
    return Result(config.k, len(labels_N), len(set(labels_N.tolist())), encoders)
