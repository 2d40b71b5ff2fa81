"""What the features are worth: weighted k-NN of the student, the same network untrained, and the cached teachers.

Every image is seen once, under the `center` view. Teachers do not run: their first summary token is read from the cache
and de-standardized, since their users compare features in the teacher's own space.

Letters: N images, D channels, B images of a batch, P pairs.
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
from pipelines.command.environment import say_surroundings
from pipelines.command.printing import print_table, results
from pipelines.command.progress import Progress, begins, say
from pipelines.evaluating.labelled import LabelledShards, Usable, check_apart, labelled, twins
from pipelines.training.training_set import Snapshot
from unic_cache.ahead import ahead, thread_pool
from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import EvaluateConfig, Views
from unic_cache.errors import CacheError
from unic_cache.evaluate.bootstrap import bootstrap, paired_difference
from unic_cache.evaluate.knn import knn, knn_leave_one_out
from unic_cache.evaluate.report import Encoder, result_table
from unic_cache.store.commit import CommitRecord
from unic_cache.stream.address import Address
from unic_cache.stream.decoder_probe import check_pixels
from unic_cache.stream.pixels import ShardPixels
from unic_cache.stream.rows import committed_record
from unic_cache.student.backbone import EncoderSpec, build_encoder, embed, prepare
from unic_cache.student.export import load_encoder
from unic_cache.student.run_files import SNAPSHOT
from unic_cache.views.classes import check_classes, classes_beside

DECODED_AHEAD = 3  # batches
ROWS_AT_ONCE = 64  # of a teacher's tokens in memory
RANDOM, STUDENT = "random student", "student"


@dataclass(frozen=True)
class Result:
    """All encoders on the same test images: teachers first, the student last."""

    k: int
    images: int  # tested
    classes: int
    encoders: Sequence[Encoder]
    left_out: int = 0  # labelled images of all sets that cannot be used
    twins: int = 0  # pairs of images with equal pixels, which never vote for each other
    trained_on: int = 0  # test images that the student was trained on, as far as its run and the cache tell

    def to_json(self) -> dict[str, Any]:
        """The result as JSON-ready data."""
        return dataclasses.asdict(self)

    def notes(self) -> list[str]:
        """What the table does not say."""
        if not self.trained_on:
            return []
        return [
            f"the student was trained on views of {self.trained_on} of these test images, without labels; images held "
            "out of training (--val-shards) tell more about new images"
        ]


def show(result: Result) -> None:
    """Print the table of one k, for people."""
    title = f"weighted {result.k}-NN, {result.images} test images, {result.classes} classes"
    print_table(results(), result_table(result.encoders, result.k, title))
    for note in result.notes():
        say(note)


def run(config: EvaluateConfig) -> Result:
    """Features of every encoder for the labelled images, then k-NN: test against train, or leave-one-out."""
    # Encoders: the cached teachers, the student's network untrained, and the student
    device = pick_device(config.device)
    encoder, spec, _ = load_encoder(config.encoder)
    cache = None if config.cache is None else opened(config.cache)
    teachers = [] if cache is None else centered(cache, config.teachers)
    untrained = build_encoder(dataclasses.replace(spec, drop_path=0.0), config.seed).eval()
    models = {RANDOM: untrained.to(device), STUDENT: encoder.to(device)}
    features: dict[str, list[Tensor]] = {name: [] for name in (*(t.name for t in teachers), *models)}

    # Images: the labelled ones of one or two sets of tars
    views = Views("center", config.size or cached_size(cache, teachers) or spec.img_size, 0)
    patterns = [config.shards] if config.shards is not None else [config.train, config.test]
    sets = [labelled(str(pattern), cache) for pattern in patterns]
    check_sets(sets)
    announce(config, device, len(teachers), views.size, sets)

    # Features: of the same images for every encoder
    found: list[Usable] = []
    with thread_pool(config.threads) as pool:
        for images in sets:
            source, records = ShardPixels(views, images.tars, pool), records_of(cache, teachers, views, images)
            if cache is not None:
                check_pixels(cache.location, source, 0)
            models = {"random student": untrained.to(device), "student": encoder.to(device)}
            found.append(Usable(images, records, source))
            for name, values_ND in embeddings(models, spec, found[-1], config.batch_size).items():
                features[name].append(values_ND)
            found[-1].finish()
            for teacher in teachers:
                assert cache is not None
                features[teacher.name].append(cached_features(cache, teacher, views, found[-1].wanted))
        pairs_P2 = twins(found)

    # k-NN: every encoder on the same test images
    features = {name: [part.to(device) for part in parts] for name, parts in features.items()}
    encoders = classified(config, features, [usable.labels for usable in found], pairs_P2)
    labels, left_out = found[-1].labels.tolist(), sum(len(usable.left_out) for usable in found)
    seen = trained_on(config.encoder, cache, sets[-1])
    return Result(config.k, len(labels), len(set(labels)), encoders, left_out, len(pairs_P2), seen)


def check_sets(sets: Sequence[LabelledShards]) -> None:
    """ShardError if a tar is in both sets, or if two folders number their classes differently."""
    if len(sets) == 2:
        check_apart(*sets)
    numbered = classes_beside([path for images in sets for path, _ in images.tars.values()])
    check_classes(numbered)
    trusted = sorted(folder or "." for folder, names in numbered.items() if names is None)
    if trusted:
        say(f"the labels in {', '.join(trusted)} are trusted to mean the same: there is no classes.json")


def announce(
    config: EvaluateConfig, device: torch.device, teachers: int, size: int, sets: Sequence[LabelledShards]
) -> None:
    """Say what is about to be done; `size` is the views', in pixels."""
    begins(
        "evaluate",
        f"student, random student and {teachers} cached teachers on {device_words(device)}",
        f"{' + '.join(f'{len(images.wanted):,}' for images in sets)} images, center views of {size} px",
        f"batch {config.batch_size}",
    )
    say_surroundings()
    neighbours = len(sets[0].wanted) - (len(sets) == 1)
    if config.k > neighbours:
        say(f"k is {config.k}, but there are only {neighbours} neighbours: all of them vote")


def records_of(
    cache: Cache | None, teachers: Sequence[CachedTeacher], views: Views, images: LabelledShards
) -> dict[tuple[int, int], list[CommitRecord]]:
    """Each tar's commit records under the center view, one per teacher."""
    if cache is None:
        return {}
    return {
        place: [committed_record(teacher, cache.unit(*place, views)) for teacher in teachers] for place in images.tars
    }


def trained_on(encoder: str, cache: Cache | None, test: LabelledShards) -> int:
    """How many test images the student was trained on, as far as its run's snapshot and the cache tell."""
    run = Path(encoder) if Path(encoder).is_dir() else Path(encoder).parent
    if cache is None or not (run / SNAPSHOT).is_file():
        return 0
    snapshot = Snapshot.load(run)
    names = {entry.name for _, entry in test.tars.values()} & set(snapshot.train)
    records = [
        teacher.record(cache.unit(*cache.shards()[name], snapshot.views, snapshot.numbers[0]))
        for name in names
        for teacher in cache.teachers.values()
    ]
    if not any(record and snapshot.records.get(record.name) == record.checksum for record in records):
        return 0
    return sum(test.tars[item.segment, item.shard][1].name in names for item in test.wanted)


def centered(cache: Cache, names: Sequence[str]) -> list[CachedTeacher]:
    """The teachers named, or else all that have a center view; the others are reported."""
    if names:
        return [cache.teacher(name) for name in dict.fromkeys(names)]
    has = {
        name: any(views.recipe == "center" and tars for views, *_, tars in cache.committed(teacher.member))
        for name, teacher in cache.teachers.items()
    }
    without = [name for name, found in has.items() if not found]
    if without and any(has.values()):
        say(f"left out, having no center view: {', '.join(without)}")
    return [teacher for name, teacher in cache.teachers.items() if has[name] or not any(has.values())]


def cached_size(cache: Cache | None, teachers: Sequence[CachedTeacher]) -> int | None:
    """The size (pixels) of the cache's center views, None without a cache. CacheError unless there is one size."""
    if cache is None:
        return None
    found = {
        views.size
        for teacher in teachers
        for views, number, _, tars in cache.committed(teacher.member)
        if tars and views.recipe == "center" and views.seed == 0 and number == 0
    }
    if len(found) != 1:
        listed = ", ".join(f"{size} px" for size in sorted(found)) or "none"
        raise CacheError(
            f"{cache.location.url} has center views of these sizes: {listed}; one is needed. Run `unic-cache extract "
            "--recipe center --views 1` with the labelled shards, or choose a size with --size"
        )
    return found.pop()


@torch.inference_mode()
def embeddings(
    models: Mapping[str, torch.nn.Module], spec: EncoderSpec, usable: Usable, size: int
) -> dict[str, Tensor]:
    """Each model's feature (N, D) of every usable image; CacheError if the pixels differ from those the cache has seen.

    The images are embedded in batches of `size`; `usable` is told which ones are good.
    """
    wanted, source = usable.images.wanted, usable.source
    starts = range(0, len(wanted), size)
    batches = [wanted[start : start + size] for start in starts]
    found: dict[str, list[Tensor]] = {name: [] for name in models}
    with Progress("evaluate", total=len(wanted), unit="images") as progress:
        made = ahead(batches, lambda group: source.start(group, len(group)), DECODED_AHEAD)
        for start, group, batch in zip(starts, batches, made, strict=True):
            good = usable.add(start, group, batch)
            for name, model in models.items() if len(good) else ():
                device = next(model.parameters()).device
                images_BCHW = prepare(torch.from_numpy(batch.views_BHWC[good]).to(device), spec)
                found[name].append(embed(model, images_BCHW).cpu())
            progress.advance(len(group))
    return {name: torch.cat(values) if values else torch.zeros(0, 1) for name, values in found.items()}


def cached_features(cache: Cache, teacher: CachedTeacher, views: Views, wanted: Sequence[Address]) -> Tensor:
    """A teacher's de-standardized features (N, D): its first summary token, or else the mean of its grid tokens."""
    found = []
    kind, tokens = next(iter(teacher.kinds.items()))
    for (segment, shard), items in groupby(wanted, lambda item: (item.segment, item.shard)):
        record = committed_record(teacher, cache.unit(segment, shard, views))
        rows = [item.row for item in items]
        for start in range(0, len(rows), ROWS_AT_ONCE):
            stored = teacher.features(record, rows[start : start + ROWS_AT_ONCE], [kind])
            own = teacher.calibration.destandardize(stored)[kind]
            found.append(own if tokens.grid is None else own.mean(dim=1))
    return torch.cat(found)


def classified(
    config: EvaluateConfig, features: Mapping[str, Sequence[Tensor]], labels: Sequence[Tensor], twins_P2: Tensor
) -> list[Encoder]:
    """Accuracies with bootstrap intervals over the test images; one set is classified leave-one-out."""
    how = (tuple(sorted({*config.neighbours, config.k})), config.temperature, twins_P2)
    correct = {
        name: knn_leave_one_out(parts[0], labels[0], *how)
        if len(labels) == 1
        else knn(parts[0], labels[0], parts[1], labels[1], *how)
        for name, parts in features.items()
    }
    encoders = []
    for name, by_k in correct.items():
        accuracy = {k: bootstrap(right, config.seed, config.bootstrap) for k, right in by_k.items()}
        over_random = None
        if name != RANDOM:
            pair = by_k[config.k], correct[RANDOM][config.k]
            over_random = paired_difference(*pair, config.seed, config.bootstrap)
        kind = name if name in {RANDOM, STUDENT} else "teacher"
        encoders.append(Encoder(name, kind, features[name][0].shape[1], accuracy, over_random))
    return encoders
