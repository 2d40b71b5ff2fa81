"""What the features are worth: weighted k-NN of the student, of the same network untrained, and of the cached teachers.

Images are seen once, under the `center` view. Teachers do not run: their CLS tokens are read from the cache and
de-standardized, since cosine neighbours in the teacher's own space are what its users get.

Letters: N images, D channels, B images of a batch.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.device import pick_device
from pipelines.given import given_shards, say
from pipelines.progress import Progress, console
from unic_cache.cache import Cache, CachedTeacher, open_cache
from unic_cache.config import EvaluateConfig, Views
from unic_cache.errors import CacheError, ShardError
from unic_cache.evaluate.knn import Correct, Interval, bootstrap, knn, knn_leave_one_out, paired_difference
from unic_cache.evaluate.report import Row, result_table
from unic_cache.probe import check_pixels
from unic_cache.sources import Address, ShardPixels, ahead, thread_pool
from unic_cache.student.backbone import EncoderSpec, build_encoder, embed, prepare
from unic_cache.student.export import load_encoder
from unic_cache.usable import committed_record
from unic_cache.views.classes import check_classes, classes_beside
from unic_cache.views.index import NO_LABEL, ShardEntry
from unic_cache.views.left_out import UNREAD_LABEL, merged

BATCHES_AHEAD = 3
ROWS_AT_ONCE = 64  # whose patch tokens are in memory together


@dataclass(frozen=True)
class LabelledShards:
    """The tars of one set, the images that count, and their labels."""

    tars: Mapping[tuple[int, int], tuple[str, ShardEntry]]
    wanted: Sequence[Address]
    labels_N: Tensor


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

    def to_json(self) -> dict[str, Any]:
        """The result as JSON-ready data."""
        return dataclasses.asdict(self)

    def table(self) -> Any:
        """The table of one k."""
        rows = [Row(e.name, e.kind, e.dim, e.accuracy[self.k], e.over_random) for e in self.encoders]
        return result_table(rows, f"weighted {self.k}-NN, {self.images} test images, {self.classes} classes")


def run(config: EvaluateConfig) -> Result:
    """Features of all encoders for the labelled shards, then k-NN: test against train, or leave-one-out."""
    device = pick_device(config.device)
    encoder, spec, _ = load_encoder(config.encoder)
    cache = None if config.cache is None else open_cache(config.cache)
    teachers = [] if cache is None else centered(cache, config.teachers)
    views = Views("center", config.size or cached_size(cache, teachers) or spec.img_size, 0)
    patterns = [config.shards] if config.shards is not None else [config.train, config.test]
    untrained = build_encoder(dataclasses.replace(spec, drop_path=0.0), config.seed).eval()

    features: dict[str, list[Tensor]] = {"random student": [], "student": [], **{t.name: [] for t in teachers}}
    with thread_pool(config.threads) as pool:
        sets = [labelled(str(pattern), cache) for pattern in patterns]
        check_sets(sets)
        for images in sets:
            source = ShardPixels(views, images.tars, pool)
            if cache is not None:
                check_pixels(cache.location, views, source, 0, lambda a, tars=images.tars: (a.segment, a.shard) in tars)  # type: ignore[misc]
            models = {"random student": untrained.to(device), "student": encoder.to(device)}
            for name, values in embeddings(models, spec, source, images.wanted, config.batch_size).items():
                features[name].append(values)
            for teacher in teachers:
                assert cache is not None
                features[teacher.name].append(cached_features(cache, teacher, views, images))
    neighbours = tuple(sorted({*config.neighbours, config.k}))
    features = {name: [part.to(device) for part in values] for name, values in features.items()}
    correct = {name: classify(values, sets, neighbours, config.temperature) for name, values in features.items()}
    return report(config, features, correct, sets)


def labelled(pattern: str, cache: Cache | None) -> LabelledShards:
    """The labelled images of the tars; places are the cache's where there is one. ShardError where none has a label."""
    paths, entries = given_shards(pattern, False)
    tell_unlabelled(pattern, entries)
    places = [(0, n) if cache is None else cache.place(entry.name, entry.keys) for n, entry in enumerate(entries)]
    wanted = [
        Address(*place, row, 0)
        for place, entry in zip(places, entries, strict=True)
        for row, label in enumerate(entry.labels)
        if label != NO_LABEL
    ]
    labels = [label for entry in entries for label in entry.labels if label != NO_LABEL]
    if len(set(labels)) < 2:
        raise ShardError(
            f"{pattern}: {len(labels)} images have a label, of {len(set(labels))} classes; k-NN needs `.cls` "
            "members of two classes at least. Make labelled shards with `unic-cache shard`"
        )
    tars = {place: (path, entry) for place, path, entry in zip(places, paths, entries, strict=True)}
    return LabelledShards(tars, wanted, torch.tensor(labels))


def check_sets(sets: Sequence[LabelledShards]) -> None:
    """ShardError where an image is both asked and an answer, or where two folders number their classes differently."""
    train, test = sets[0].tars.values(), sets[-1].tars.values()
    if len(sets) == 2:
        keys = {key for _, entry in train for key in entry.keys}
        both = next((path for path, entry in test if entry.keys and keys.issuperset(entry.keys)), None)
        if both is not None:
            raise ShardError(
                f"{both}: its images are in --train too and would find themselves; use --shards, leave-one-out"
            )
    numbered = classes_beside([path for path, _ in (*train, *test)])
    check_classes(numbered)
    trusted = sorted(folder or "." for folder, names in numbered.items() if names is None)
    if trusted:
        say(f"taken on trust: what the labels in {', '.join(trusted)} mean, as no classes.json is there")


def tell_unlabelled(pattern: str, entries: Sequence[ShardEntry]) -> None:
    """One line on stderr that says how many images have no label, or one that cannot be read."""
    none = sum(label == NO_LABEL for entry in entries for label in entry.labels)
    unread = merged(one for entry in entries for one in entry.left_out if one.reason == UNREAD_LABEL)
    broken = sum(one.count for one in unread)
    parts = [f"{none - broken:,} have no label"] if none > broken else []
    parts += [f"{one.count:,} have a label that cannot be read ({one.example})" for one in unread]
    if parts:
        images = sum(entry.rows for entry in entries)
        say(f"not evaluated of the {images:,} images of {pattern}: {', and '.join(parts)}")


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
    models: Mapping[str, torch.nn.Module], spec: EncoderSpec, source: ShardPixels, wanted: Sequence[Address], size: int
) -> dict[str, Tensor]:
    """Each model's feature (N, D) of every image; ShardError on a bad one."""
    batches = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    found: dict[str, list[Tensor]] = {name: [] for name in models}
    with Progress("evaluate", total=len(wanted), unit="images") as progress:
        for group, batch in zip(batches, ahead(batches, lambda g: source.start(g, len(g)), BATCHES_AHEAD), strict=True):
            if batch.bad:
                place, reason = next(iter(batch.bad.items()))
                path = source.tars[group[place].segment, group[place].shard][0]
                raise ShardError(f"{path}, row {group[place].row}: {reason}; evaluation needs every labelled image")
            for name, model in models.items():
                device = next(model.parameters()).device
                images_BCHW = prepare(torch.from_numpy(batch.views_BHWC).to(device), spec)
                found[name].append(embed(model, images_BCHW).cpu())
            progress.advance(len(group))
    return {name: torch.cat(values) for name, values in found.items()}


def cached_features(cache: Cache, teacher: CachedTeacher, views: Views, images: LabelledShards) -> Tensor:
    """A teacher's own (de-standardized) CLS tokens (N, D); the mean of its patch tokens where it has no CLS."""
    found = []
    for segment, shard in images.tars:
        record = committed_record(cache, teacher, views.name(0), segment, shard)
        rows = [item.row for item in images.wanted if (item.segment, item.shard) == (segment, shard)]
        if set(rows) & set(record.bad):
            raise CacheError(
                f"{cache.location.url}: {record.unit} has bad rows, and evaluation needs every labelled image"
            )
        if teacher.codec.cls_dim is not None:
            found.append(teacher.calibration.destandardize({"cls": teacher.cls(record, rows)})["cls"])
            continue
        for start in range(0, len(rows), ROWS_AT_ONCE):
            features = teacher.features(record, rows[start : start + ROWS_AT_ONCE])
            found.append(teacher.calibration.destandardize(features)["patch"].mean(dim=1))
    return torch.cat(found)


def classify(
    features: Sequence[Tensor], sets: Sequence[LabelledShards], neighbours: Sequence[int], temperature: float
) -> dict[int, Correct]:
    """For each k, which test images are classified correctly."""
    if len(sets) == 1:
        return knn_leave_one_out(features[0], sets[0].labels_N, neighbours, temperature)
    return knn(features[0], sets[0].labels_N, features[1], sets[1].labels_N, neighbours, temperature)


def report(
    config: EvaluateConfig,
    features: Mapping[str, Sequence[Tensor]],
    correct: Mapping[str, Mapping[int, Correct]],
    sets: Sequence[LabelledShards],
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
    labels_N = sets[-1].labels_N
    return Result(config.k, len(labels_N), len(set(labels_N.tolist())), encoders)
