"""`distill` from a cache against the same student fed from memory, and against `--online`, in one run.

    python -m benchmarks.distilling [--student vit_base_patch16_224] [--codec klt f16] [--tokens 0 64] [--batch-size N]

Four ViT-B teachers with random weights, and a cache of theirs, made by `extract`, for each codec. Every way is a
`distill.run` of a few steps, all ways in turns; the steps after the first ones count, by the run's own log. A JSON line
for each student and number of patch tokens that the loss sees (0: all); medians over the turns.

| what | images a second of a run, or how it is made |
|---|---|
| `cached` | from the cache, its pixels kept (`--decode`: made from the tars' JPEGs instead) |
| `memory` | the very batches of the cache's reader, a few of them read once and repeated: the limit |
| `online` | the teachers run beside the student; pixels come from where the cached runs have them |
| `waiting` | share of time in which a run waited for data |
| `flops_allow` | (student's training step + teachers' forwards) / student's training step, in FLOPs of one image |

A batch of few images does not reach `flops_allow`: AdamW costs the same at any batch, and on both sides.
"""

import argparse
import dataclasses
import gc
import itertools
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.extracting import LARGE, QUALITY, given, kept_by, machine, random_weights, write_tars
from benchmarks.ladder import GRID, KINDS, one_module_each
from pipelines import distill, extract
from pipelines.command.device import pick_device
from pipelines.extracting import opening
from pipelines.extracting.opening_options import TeacherOptions
from pipelines.training.run_state import RunState
from unic_cache.config import CODECS, DTYPES, PRECISIONS, DistillConfig, ExtractConfig
from unic_cache.stream.address import Address
from unic_cache.stream.batches import GROUP_BYTES, Batch, Stream
from unic_cache.student.anatomy import levels_of
from unic_cache.student.backbone import anatomy, build_encoder, encoder_spec
from unic_cache.student.ladder import Ladder
from unic_cache.student.run_files import LOG
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import Teacher
from unic_cache.teachers.token_rules import tokens

STUDENTS = ("vit_base_patch16_224", "vit_small_patch16_224")
REMEMBERED = 8  # batches
ONLINE = "online"


@dataclass(frozen=True)
class Rate:
    """What a run's log says of the steps that count."""

    images_per_second: float
    waiting: float


class FromMemory(Stream):
    """A stream that reads its first batches, and then gives them again and again."""

    def batches(self, wanted: Iterator[list[Address]]) -> Iterator[Batch]:
        yield from itertools.cycle(list(super().batches(itertools.islice(wanted, REMEMBERED))))


def in_groups(images: int) -> type[Stream]:
    """A stream that reads so few images at a time that a short run sees as many groups as a long one; 0: as it is."""

    class Short(Stream):
        def batches(self, wanted: Iterator[list[Address]]) -> Iterator[Batch]:
            self.image_bytes = max(self.image_bytes, GROUP_BYTES // images)
            return super().batches(wanted)

    return Short if images else Stream


class Bench:
    """Tars, weights, teachers and caches, and the runs on them."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.options = options
        device = pick_device("auto")
        write_tars(folder / "tars", options.images, 2)
        self.extract = ExtractConfig(
            teachers=LARGE,
            weights=random_weights(folder, LARGE),
            shards=str(folder / "tars/*.tar"),
            views=1,
            batch_size=options.batch_size,
            dtype=options.dtype,
            keep_views=not options.decode,
            calibration_images=min(options.images, 1024),
        )
        self.teachers: dict[str, Teacher] = opening.load_teachers(TeacherOptions.of(self.extract), device)
        for codec in dict.fromkeys([*options.codec, "f16"]):  # what `online` needs besides is in that of f16
            config = dataclasses.replace(self.extract, cache=str(folder / codec), **kept_by(codec, options.quality))
            with given(self.teachers):
                extract.run(config)

    def ways(self, student: str, seen: int) -> dict[str, Callable[[], Rate]]:
        """Each way by name."""
        short = in_groups(self.options.group_images)
        online = {"online": True, "weights": self.extract.weights, "dtype": self.options.dtype}
        ways: dict[str, Callable[[], Rate]] = {ONLINE: partial(self._run, "f16", student, seen, short, online)}
        for codec in self.options.codec:
            ways[f"{codec} cached"] = partial(self._run, codec, student, seen, short, {})
            ways[f"{codec} memory"] = partial(self._run, codec, student, seen, FromMemory, {})
        return ways

    def _run(self, codec: str, student: str, seen: int, stream: type[Stream], how: dict[str, Any]) -> Rate:
        """One run, of which nothing is kept; what it would write at its end is not timed, and is gigabytes.

        Online it finds the calibrations, and the pixels, of the cache where it would make its own.
        """
        options, out = self.options, self.folder / "run"
        out.mkdir()
        if how:
            (out / ONLINE).symlink_to(self.folder / codec)
        config = DistillConfig(
            cache=str(self.folder / codec),
            shards=self.extract.shards,
            out=str(out),
            student=student,
            teachers=LARGE,
            views=1,
            tokens=seen or None,
            steps=options.warmup + options.steps,
            batch_size=options.batch_size,
            calibration_images=self.extract.calibration_images,
            precision=options.precision,
            log_every=options.log_every,
            tracker="none",
            **how,
        )
        with (
            given(self.teachers),
            patch.object(distill, "Stream", stream),
            patch.object(RunState, "save", lambda *_: None),
        ):
            distill.run(config)
        lines = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
        shutil.rmtree(out)
        gc.collect()
        counted = [line for line in lines if line["step"] > options.warmup]
        images = options.log_every * options.batch_size
        seconds = [images / line["images_per_second"] for line in counted]
        waited = sum(line["waiting"] * took for line, took in zip(counted, seconds, strict=True))
        return Rate(images * len(counted) / sum(seconds), waited / sum(seconds))


def main() -> None:
    cuda = torch.cuda.is_available()
    options = arguments(cuda)
    if options.steps % options.log_every or options.warmup % options.log_every:
        raise SystemExit(f"{options.warmup} and {options.steps} steps are not whole lines of {options.log_every}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        for student, seen in itertools.product(options.student, options.tokens):
            ways = bench.ways(student, seen)
            rates: dict[str, list[Rate]] = defaultdict(list)
            for _, (name, run) in itertools.product(range(options.repeat), ways.items()):
                rates[name].append(run())
            settings = {key: getattr(options, key) for key in ("batch_size", "steps", "precision", "dtype", "decode")}
            result = {
                "student": student,
                "tokens": seen or GRID[0] * GRID[1],
                **settings,
                **machine(pick_device("auto")),
            }
            found = compared(options.codec, rates)
            print(json.dumps({**result, "flops_allow": round(flops_allow(student, seen), 3), **found}), flush=True)


def arguments(cuda: bool) -> argparse.Namespace:
    """The command line, and what it leaves open: small on a CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", nargs="+", default=STUDENTS if cuda else STUDENTS[1:])
    parser.add_argument("--codec", nargs="+", choices=CODECS, default=["klt", "f16"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[0, 64])
    parser.add_argument("--images", type=int, default=4096 if cuda else 16)
    parser.add_argument("--batch-size", type=int, default=128 if cuda else 4)
    parser.add_argument("--warmup", type=int, default=20 if cuda else 1, help="steps that do not count")
    parser.add_argument("--steps", type=int, default=100 if cuda else 3, help="steps that do")
    parser.add_argument("--log-every", type=int, default=10 if cuda else 1, help="steps")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16" if cuda else "no", help="the student's")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16" if cuda else "float32", help="the teachers'")
    parser.add_argument("--quality", type=float, default=QUALITY, help="of klt")
    parser.add_argument("--group-images", type=int, default=0 if cuda else 8, help="read at a time; 0: as many as ever")
    parser.add_argument("--decode", action="store_true", help="keep no pixels")
    parser.add_argument("--repeat", type=int, default=3 if cuda else 1)
    return parser.parse_args()


def compared(codecs: list[str], rates: dict[str, list[Rate]]) -> dict[str, Any]:
    """Medians of the rates, and of each turn's own ratios."""

    def ratio(one: str, other: str) -> float:
        pairs = zip(rates[one], rates[other], strict=True)
        return round(median(a.images_per_second / b.images_per_second for a, b in pairs), 3)

    def middle(name: str) -> dict[str, float]:
        rate = median(rate.images_per_second for rate in rates[name])
        return {"images_per_second": round(rate, 3), "waiting": round(median(r.waiting for r in rates[name]), 4)}

    found: dict[str, Any] = {ONLINE: middle(ONLINE)}
    for codec in codecs:
        cached, memory = f"{codec} cached", f"{codec} memory"
        found[codec] = {
            "cached": middle(cached),
            "memory": middle(memory),
            "cached_to_memory": ratio(cached, memory),
            "cached_to_online": ratio(cached, ONLINE),
        }
    return found


def flops_allow(student: str, seen: int) -> float:
    """By how much training from a cache can be faster, were every FLOP as fast as every other."""
    step = step_flops(student, seen)
    return (step + sum(map(teacher_flops, LARGE))) / step


def step_flops(student: str, seen: int) -> int:
    """FLOPs of forward and backward of encoder and ladder for one image."""
    spec = encoder_spec(student)
    with torch.device("meta"):
        encoder = build_encoder(spec, seed=0)
        targets = dict.fromkeys(LARGE, KINDS)
        ladder = Ladder(anatomy(spec).widths, targets, seed=0)
        image = torch.empty(1, 3, spec.img_size, spec.img_size)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        blocks = [(cls_BD, patch_BTD[:, : seen or None]) for cls_BD, patch_BTD in levels_of(encoder, image).tokens]
        guesses = one_module_each(ladder)(blocks, [GRID])
        torch.autograd.backward([values.sum() for guess in guesses.values() for values in guess.values()])
    return int(counter.get_total_flops())


@torch.no_grad()
def teacher_flops(name: str) -> int:
    """FLOPs of a teacher's forward for one image."""
    spec = resolve(name)
    with torch.device("meta"):
        model = timm.create_model(spec.arch, num_classes=0, **dict(spec.arch_options)).eval()
        image = torch.empty(1, 3, spec.input_size, spec.input_size)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        tokens(model, image, spec)
    return int(counter.get_total_flops())


if __name__ == "__main__":
    main()
