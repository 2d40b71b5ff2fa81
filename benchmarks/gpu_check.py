"""CUDA against the CPU, on the same numbers: `python -m benchmarks.gpu_check [--device cuda]`, or `make gpu-check`.

One line of JSON a check, with the largest difference and what is allowed; exit status 1 if a check fails.

| check | largest difference |
|---|---|
| `decode CODEC` | of a standardized value, both devices decoding the CPU's codes |
| `encode CODEC` | share of stored bytes that differ; a value on the edge between two codes may go either way |
| `ladder` | of a guess, relative to the largest guess |
| `loss` | relative |
| `distill` | of the loss in 10 steps, relative, without dropped paths, which each device draws for itself |
| `resume` | of a weight of the exported encoder, stopped and resumed against never stopped, both on the device |

`--device cpu` compares the CPU with itself, which tests this file.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.extracting import random_weights, write_tars
from pipelines import distill, extract
from unic_cache.config import CODECS, DistillConfig, ExtractConfig
from unic_cache.store.calibrate import Calibrator
from unic_cache.store.codecs.codec import FeatureCodec, Features
from unic_cache.student.ladder import Ladder
from unic_cache.student.loss import distillation_loss, drop_uniforms
from unic_cache.student.run_files import ENCODER, LOG
from unic_cache.tf32 import float32_products
from unic_cache.token_kinds import Kinds, TokenKind

GRID = (14, 14)
DECODED = {"f16": 0.0, "int8": 1e-6, "int4": 1e-4, "klt": 1e-3}  # standardized values, of about 1
ENCODED = {"f16": 0.0, "int8": 1e-4, "int4": 1e-3, "klt": 1e-3}
GUESSED, LOST, TRAINED = 1e-4, 1e-5, 1e-3
TEACHERS = ("timm:test_vit@32", "timm:test_efficientnet@32")
STEPS, SAVED, STOPPED = 10, 5, 8

Found = tuple[str, float, float]  # check, largest difference, tolerance


def main(arguments: list[str] | None = None) -> int:
    """Run every check; 1 if one fails, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="to be checked against the CPU")
    parser.add_argument("--width", type=int, default=768, help="channels of a token")
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu compares the CPU with itself")
    failed = False
    with tempfile.TemporaryDirectory() as folder, float32_products(tf32=False):
        for check, largest, tolerance in checks(device, options.width, options.images, Path(folder)):
            good = largest <= tolerance
            failed |= not good
            line = {"check": check, "largest": float(f"{largest:.3g}"), "tolerance": tolerance, "good": good}
            print(json.dumps(line), flush=True)
    return int(failed)


def checks(device: torch.device, width: int, images: int, folder: Path) -> Iterator[Found]:
    """Every check in turn."""
    for codec in CODECS:
        yield from codec_checks(codec, device, width, images)
    yield from ladder_checks(device, width, images)
    yield from training_checks(device, folder)


def codec_checks(name: str, device: torch.device, width: int, images: int) -> Iterator[Found]:
    """Both directions of a codec on tokens whose channels are correlated, as a teacher's are."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    tokens = torch.randn(images, GRID[0] * GRID[1], width, generator=generator) @ mixing
    codec, exact = calibrated(name, tokens)
    here, there = (codec.encode({"patch": exact.to(at)}).arrays for at in (torch.device("cpu"), device))
    ours = codec.decode(here)["patch"]
    theirs = codec.decode({array: values.to(device) for array, values in here.items()})["patch"].cpu()
    yield f"decode {name}", (ours - theirs).abs().max().item(), DECODED[name]
    different = [as_bytes(here[array]) != as_bytes(there[array].cpu()) for array in here]
    yield f"encode {name}", torch.cat(different).float().mean().item(), ENCODED[name]


def calibrated(name: str, tokens_BTD: Tensor) -> tuple[FeatureCodec, Tensor]:
    """The codec that `extract` would fit to these tokens, and the tokens standardized."""
    features = Features(name, {"patch": TokenKind(tokens_BTD.shape[-1], GRID)})
    calibrator = Calibrator(features)
    calibrator.update({"patch": tokens_BTD})
    calibration = calibrator.calibration()
    return calibration.codec(features), calibration.standardize({"patch": tokens_BTD})["patch"]


def as_bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8).flatten()


def ladder_checks(device: torch.device, width: int, images: int) -> Iterator[Found]:
    """Guesses and loss of three blocks and two teachers, one with two summary tokens and a grid of its own."""
    kinds: dict[str, Kinds] = {
        "one": {"cls": TokenKind(width), "patch": TokenKind(width, GRID)},
        "two": {"a": TokenKind(width), "b": TokenKind(width // 2), "patch": TokenKind(width, (7, 5))},
    }
    ladder, generator = Ladder([(width, width)] * 3, kinds, seed=0), torch.Generator().manual_seed(0)
    shape = (images, 1 + GRID[0] * GRID[1], width)
    outputs = [torch.randn(shape, generator=generator) for _ in range(3)]
    uniforms = drop_uniforms(0, 0, images, len(kinds))
    guesses, losses = [], []
    for at in (torch.device("cpu"), device):
        with torch.no_grad():
            found = ladder.to(at)([(output[:, 0].to(at), output[:, 1:].to(at)) for output in outputs], [GRID] * 3)
            targets = {name: {kind: torch.ones_like(x) for kind, x in of.items()} for name, of in found.items()}
            losses.append(distillation_loss(found, targets, uniforms.to(at), 0.5).loss.item())
        guesses.append(torch.cat([values.cpu().flatten() for of in found.values() for values in of.values()]))
    apart = (guesses[0] - guesses[1]).abs().max() / guesses[0].abs().max()
    yield "ladder", apart.item(), GUESSED
    yield "loss", abs(losses[1] / losses[0] - 1), LOST


def training_checks(device: torch.device, folder: Path) -> Iterator[Found]:
    """A cache of two tiny teachers, and students that `distill` trains from it."""
    write_tars(folder / "tars", 16, 1)
    common: dict[str, Any] = {"shards": str(folder / "tars/*.tar"), "cache": str(folder / "cache"), "views": 1}
    extract_config = ExtractConfig(
        teachers=TEACHERS,
        weights=random_weights(folder, TEACHERS),
        codec="f16",
        size=32,
        calibration_images=16,
        device="cpu",
        **common,
    )
    common |= {"student": "test_vit", "img_size": 32, "patch_size": 16, "steps": STEPS, "batch_size": 8, "lr": 1e-3}
    common |= {"log_every": 1, "save_every": SAVED, "tracker": "none"}

    def trained(out: str, at: torch.device, **changes: Any) -> Path:
        with patch.dict(os.environ, {"ACCELERATE_USE_CPU": str(at.type == "cpu")}):
            AcceleratorState._reset_state(reset_partial_state=True)
            tf32 = None if at.type == "cpu" else False
            distill.run(DistillConfig(**common, **changes, out=str(folder / out), tf32=tf32))
        return folder / out

    with redirect_stderr(StringIO()):
        extract.run(extract_config)
        here = trained("cpu", torch.device("cpu"), drop_path=0.0)
        there = trained("device", device, drop_path=0.0)
        apart = [abs(two / one - 1) for one, two in zip(losses(here), losses(there), strict=True)]
        yield "distill", max(apart), TRAINED

        whole = trained("whole", device)
        honest, calls = distill.set_rate, iter(range(1, 2 * STEPS))

        def stopping(*given: Any) -> float:
            if next(calls) == STOPPED:
                raise KeyboardInterrupt
            return honest(*given)

        try:
            with patch.object(distill, "set_rate", stopping):
                trained("parts", device)
        except KeyboardInterrupt:
            parts = trained("parts", device, resume=True)
        one, two = (load_file(out / ENCODER) for out in (whole, parts))
        yield "resume", max((one[name] - two[name]).abs().max().item() for name in one), 0.0


def losses(out: Path) -> list[float]:
    """The loss of each step."""
    lines = map(json.loads, (out / LOG).read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


if __name__ == "__main__":
    raise SystemExit(main())
