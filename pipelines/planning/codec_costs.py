"""What teachers and codecs cost on this machine, measured on a few hundred views.

    trial views -> each teacher, timed -> each codec: fitted, written to a temporary store, read and decoded

Every time is taken after a warm-up.

Letters: N views of the trial, H and W pixels, T patch tokens of a view, M of them kept.
"""

import dataclasses
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.extracting.specs import coded_cls
from pipelines.planning.forecast import KeptCost
from pipelines.planning.trial import Trial
from unic_cache.config import DEFAULT_QUALITY, FITTED, RANDOM, PlanConfig, Views
from unic_cache.files.local import LocalFolder
from unic_cache.store.calibrate import Calibration, Calibrator, refit
from unic_cache.store.codecs.codec import Features
from unic_cache.store.commit import CommitRecord, Unit
from unic_cache.store.layout import ADDED, Extent, format_of
from unic_cache.store.member import Member
from unic_cache.store.reader import RowArray, RowReader
from unic_cache.store.sampling import at_positions
from unic_cache.store.writer import UnitWriter
from unic_cache.teachers.model import Teacher
from unic_cache.token_kinds import kinds_to_json

ROWS_AT_ONCE = 64  # read by a thread, and decoded, in one go
REPEATS = 3


@dataclass(frozen=True)
class Answers:
    """One teacher's features of the trial."""

    teacher: Teacher
    standardized: Mapping[str, Tensor]  # {"cls": (N, D), "patch": (N, T, D)} float32 on the CPU
    calibration: Calibration  # the statistics alone
    seconds: float  # per view, on the teacher's device
    count_seconds: float  # per view, to add it to the statistics


def kept_features(
    config: PlanConfig, teacher: Teacher, codec: str, tokens: int | None = None, sampling: str = RANDOM
) -> Features:
    """What is kept of a teacher by a codec; `tokens` of its patch tokens by the rule `sampling`, None for all."""
    quality = config.quality or DEFAULT_QUALITY
    kinds = teacher.spec.kinds
    cls_quality = coded_cls(config.cls_quality, quality, kinds) if codec == FITTED else None
    return Features(codec, kinds, tokens, quality, sampling, cls_quality=cls_quality)


def ask(config: PlanConfig, teacher: Teacher, trial: Trial) -> Answers:
    """Run a teacher on the trial in batches of one size, as extraction does, once it is warm."""
    views_NHWC, count, batch_size = trial.views_NHWC, len(trial.shown), config.batch_size
    padded = torch.cat([views_NHWC, views_NHWC.new_zeros(-count % batch_size, *views_NHWC.shape[1:])])
    batches = torch.split(padded, batch_size)
    teacher(batches[0].to(teacher.device))
    seconds = 0.0
    said: dict[str, list[Tensor]] = {}
    for views_BHWC in batches:
        began = time.perf_counter()
        answer = teacher(views_BHWC.to(teacher.device))
        wait_for(teacher.device)
        seconds += time.perf_counter() - began
        for kind, values in answer.items():
            said.setdefault(kind, []).append(values.cpu())
    tokens = {kind: torch.cat(values)[:count] for kind, values in said.items()}
    calibrator = Calibrator(kept_features(config, teacher, "f16"))
    began = time.perf_counter()
    calibrator.update(tokens)
    counting = (time.perf_counter() - began) / count
    calibration = calibrator.calibration()
    return Answers(teacher, calibration.standardize(tokens), calibration, seconds / len(padded), counting)


@dataclass(frozen=True)
class Fitted:
    """A codec fitted to one teacher's features of the trial, and those that it keeps."""

    answers: Answers
    features: Features
    tokens: Mapping[str, Tensor]  # standardized, on the CPU
    calibration: Calibration
    seconds: float  # per view that it is fitted to


def fit(answers: Answers, features: Features, trial: Trial, seed: int) -> Fitted:
    """Fit a codec; the same for each of its coders.

    The fidelity is that of every fifth view, which nothing was fitted to.
    """
    tokens = answers.standardized
    kept_NM = features.positions(seed, trial.shown)
    if kept_NM is not None:
        tokens = at_positions(tokens, torch.from_numpy(kept_NM))
    began = time.perf_counter()
    calibration = refit(answers.calibration, features, pieces(tokens))
    return Fitted(answers, features, tokens, calibration, (time.perf_counter() - began) / len(trial.shown))


def measure_codec(fitted: Fitted, coder: str, trial: Trial, pool: ThreadPoolExecutor) -> KeptCost:
    """Write the trial with a codec to a temporary store, and read it. CacheError if it cannot keep the tokens."""
    teacher, tokens, count = fitted.answers.teacher, fitted.tokens, len(trial.shown)
    features = dataclasses.replace(fitted.features, coder=coder)
    with tempfile.TemporaryDirectory(prefix="unic-cache-plan-") as folder:
        member = make_member(folder, teacher.spec.name, features, fitted.calibration)
        arrays, encode_seconds = encoded(member, tokens, teacher.device)
        unit = Unit(0, Extent(1, count), 0, "trial", count, Views(), 0)
        found = member.calibration()
        record = UnitWriter(member, found[1] if found else None).write(unit, arrays, np.zeros(count, np.uint32), {})
        size = stored_bytes(member, record, trial.padding)
        read = read_seconds(member, record, teacher.device, pool)
    fidelity = dict(fitted.calibration.fidelity)
    way = features.codec, features.sampled, size, fidelity
    return KeptCost(
        teacher.spec.name, *way, encode_seconds, read, fitted.seconds, sampling=features.sampling, coder=coder
    )


def make_member(folder: str, teacher: str, features: Features, calibration: Calibration) -> Member:
    """A teacher's member in a store at `folder`, with all that its codec needs."""
    kept = {"codec": features.codec, "tokens": features.sampled, "quality": features.quality}
    added = {"sampling": features.sampling, "coder": features.coder, "cls_quality": features.cls_quality}
    added = {key: value for key, value in added.items() if value != ADDED[key]}
    spec = {"teacher": {"name": teacher}, "features": kinds_to_json(features.kinds), **kept, **added}
    member = Member.ensure(LocalFolder(folder), "trial", {"format": format_of(spec), **spec})
    member.location.create(member.calibration_name, calibration.to_bytes())
    return member


def encoded(member: Member, tokens: Mapping[str, Tensor], device: torch.device) -> tuple[dict[str, RowArray], float]:
    """The member's arrays of all tokens, and the device's seconds per view."""
    assert member.codec is not None
    parts: dict[str, list[RowArray]] = {}
    member.codec.encode({kind: values.to(device) for kind, values in next(pieces(tokens)).items()})
    seconds = 0.0
    for piece in pieces(tokens):
        here = {kind: values.to(device) for kind, values in piece.items()}
        wait_for(device)
        began = time.perf_counter()
        found = member.codec.encode(here).arrays
        wait_for(device)
        seconds += time.perf_counter() - began
        for name, values in found.items():
            parts.setdefault(name, []).append(values.cpu().numpy())
    arrays = {array.name: np.concatenate(parts[array.name]) for array in member.arrays}
    return arrays, seconds / len(next(iter(tokens.values())))


def stored_bytes(member: Member, record: CommitRecord, padding: float) -> float:
    """Bytes per view: of compressed arrays as measured, of plain ones by their shape and the tars' padding."""
    plain = sum(array.row_bytes for array in member.arrays if not array.tile)
    tiled = {array.name for array in member.arrays if array.tile}
    packed = sum(size for name, size in record.sizes.items() if name.split("/")[-2] in tiled)
    return plain * padding + packed / record.unit.rows


def read_seconds(member: Member, record: CommitRecord, device: torch.device, pool: ThreadPoolExecutor) -> float:
    """Seconds per view to read from the page cache, check, unpack and decode, as training does."""
    codec, rows = member.codec, range(record.unit.rows)
    assert codec is not None
    pieces = [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]

    def once() -> float:
        reader = RowReader(member)
        began = time.perf_counter()
        for parts in pool.map(lambda piece: reader.read(record, piece), pieces):
            codec.decode({name: torch.from_numpy(values).to(device) for name, values in parts.items()})
        wait_for(device)
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(REPEATS)) / len(rows)


def pieces(tokens: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The same tokens, ROWS_AT_ONCE views at a time."""
    for start in range(0, len(next(iter(tokens.values()))), ROWS_AT_ONCE):
        yield {kind: values[start : start + ROWS_AT_ONCE] for kind, values in tokens.items()}


def wait_for(device: torch.device) -> None:
    """Block until a GPU has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
