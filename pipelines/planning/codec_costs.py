"""What teachers and codecs cost on this machine, measured on a few hundred views.

    probe views -> each teacher, timed -> each codec: fitted, written to a store that goes again, read and decoded

Each time is taken after a warm-up.

Letters: N views of the probe, H and W pixels, T patch tokens of a view, M of which are kept.
"""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.planning.forecast import KeptCost
from pipelines.planning.trial import Probe
from unic_cache.files.location import Location
from unic_cache.store.calibrate import DEFAULT_QUALITY, Calibration, Calibrator, refit
from unic_cache.store.codecs.codec import Features
from unic_cache.store.commit import CommitRecord, Unit
from unic_cache.store.layout import FORMAT, Extent
from unic_cache.store.member import Member
from unic_cache.store.reader import RowArray, RowReader
from unic_cache.store.sampling import kept_positions
from unic_cache.store.writer import UnitWriter
from unic_cache.teachers.model import Teacher

ROWS_AT_ONCE = 64  # that a thread reads in one go, and that are decoded together
REPEATS = 3


@dataclass(frozen=True)
class Answers:
    """What one teacher says of the probe."""

    teacher: Teacher
    standardized: Mapping[str, Tensor]  # {"cls": (N, D), "patch": (N, T, D)} float32 on the CPU
    calibration: Calibration  # the statistics alone
    seconds: float  # of a view, on the teacher's device
    count_seconds: float  # of a view, to add it to the statistics


def kept_features(teacher: Teacher, codec: str, quality: float | None, tokens: int | None) -> Features:
    """What is kept of a teacher by a codec; `tokens` of its patch tokens, None for all."""
    spec = teacher.spec
    return Features(codec, spec.cls_dim, spec.grid or (1, 1), spec.patch_dim, tokens, quality or DEFAULT_QUALITY)


def ask(teacher: Teacher, probe: Probe, batch_size: int) -> Answers:
    """Show the probe to a teacher in batches of one size, as extraction does, once they run warm."""
    count = len(probe.views_NHWC)
    padded = torch.cat([probe.views_NHWC, probe.views_NHWC.new_zeros(-count % batch_size, *probe.views_NHWC.shape[1:])])
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
    calibrator = Calibrator(kept_features(teacher, "f16", None, None))
    began = time.perf_counter()
    calibrator.update(tokens)
    counting = (time.perf_counter() - began) / count
    calibration = calibrator.calibration()
    return Answers(teacher, calibration.standardize(tokens), calibration, seconds / len(padded), counting)


def measure_codec(
    answers: Answers, features: Features, probe: Probe, seed: int, location: Location, pool: ThreadPoolExecutor
) -> KeptCost:
    """Fit a codec, keep the probe by it at `location`, and read it again. CacheError where it cannot keep these tokens.

    The fidelity is that of every fifth view, which nothing was fitted to.
    """
    tokens, name, device = dict(answers.standardized), answers.teacher.spec.name, answers.teacher.device
    if features.sampled is not None and features.patch_dim is not None:
        kept_NM = torch.from_numpy(kept_positions(seed, probe.shown, features.grid, features.sampled))
        tokens["patch"] = tokens["patch"].take_along_dim(kept_NM[..., None], dim=1)
    began = time.perf_counter()
    calibration = refit(answers.calibration, features, pieces(tokens))
    fitting = (time.perf_counter() - began) / len(probe.shown)
    member = make_member(location, f"probe-{features.codec}-{features.sampled}", name, features, calibration)
    arrays, encode_seconds = encoded(member, tokens, device)
    count = len(probe.shown)
    unit = Unit(0, Extent(1, count), 0, "probe", count, "unic-224-0-000")
    found = member.calibration()
    record = UnitWriter(member, found[1] if found else None).write(unit, arrays, np.zeros(count, np.uint32), {})
    return KeptCost(
        name,
        features.codec,
        features.sampled,
        stored_bytes(member, record, probe.padding),
        dict(calibration.fidelity),
        encode_seconds,
        read_seconds(member, record, device, pool),
        fitting,
    )


def make_member(location: Location, folder: str, name: str, features: Features, calibration: Calibration) -> Member:
    """A teacher's folder with all that its codec needs."""
    dims = {"cls_dim": features.cls_dim, "grid": features.grid, "patch_dim": features.patch_dim}
    kept = {"codec": features.codec, "tokens": features.sampled, "quality": features.quality}
    spec = {"format": FORMAT, "teacher": {"name": name}, "features": dims, **kept}
    member = Member.ensure(location, folder, spec)
    location.create(member.calibration_name, calibration.to_bytes())
    return member


def encoded(member: Member, tokens: Mapping[str, Tensor], device: torch.device) -> tuple[dict[str, RowArray], float]:
    """The member's arrays of all tokens, and the seconds a view that the device needs."""
    assert member.codec is not None
    parts: dict[str, list[RowArray]] = {}
    member.codec.encode({kind: values.to(device) for kind, values in next(pieces(tokens)).items()})
    seconds = 0.0
    for piece in pieces(tokens):
        here = {kind: values.to(device) for kind, values in piece.items()}
        wait_for(device)
        began = time.perf_counter()
        found = member.codec.encode(here)
        wait_for(device)
        seconds += time.perf_counter() - began
        for name, values in found.items():
            parts.setdefault(name, []).append(values.cpu().numpy())
    arrays = {array.name: np.concatenate(parts[array.name]) for array in member.arrays}
    return arrays, seconds / len(next(iter(tokens.values())))


def stored_bytes(member: Member, record: CommitRecord, padding: float) -> float:
    """Bytes a view: of compressed arrays as they came out, of plain ones by their shape and the tars' padding."""
    plain = sum(array.row_bytes for array in member.arrays if not array.tile)
    tiled = {array.name for array in member.arrays if array.tile}
    packed = sum(size for name, size in record.sizes.items() if name.split("/")[-2] in tiled)
    return plain * padding + packed / record.unit.rows


def read_seconds(member: Member, record: CommitRecord, device: torch.device, pool: ThreadPoolExecutor) -> float:
    """Seconds a view to read what is in the machine's memory, check, unpack and decode it, as training does."""
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
    """The same tokens, some views at once."""
    for start in range(0, len(next(iter(tokens.values()))), ROWS_AT_ONCE):
        yield {kind: values[start : start + ROWS_AT_ONCE] for kind, values in tokens.items()}


def wait_for(device: torch.device) -> None:
    """Until a GPU has done all that it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
