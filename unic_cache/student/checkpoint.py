"""A run's state in one file without pickle: safetensors for tensors, JSON in its header for the rest.

| tensor | what |
|---|---|
| `model.NAME` | parameters and buffers of encoder and ladder |
| `optimizer.NAME.exp_avg`, `.exp_avg_sq`, `.step` | AdamW's state of the parameter NAME |
| `ema.NAME` | with --ema, the moving average of `model.NAME` |

The header's `unic_cache` holds the steps done, the number of processes, the fp16 scaler's state and the tensors'
checksum. Order and random draws need no state: both are functions of the step's number. How many processes wrote the
file, and whether they held a part of the model each, leaves no trace in the tensors.

The file is replaced atomically. Older ones that are kept lie beside it as checkpoint-000100.safetensors, by steps.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from crc32c import crc32c
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from unic_cache.errors import ConfigError
from unic_cache.files.durable import sync_file, sync_folder
from unic_cache.files.local import LocalFolder
from unic_cache.student.run_files import CHECKPOINT, OLDER, older_checkpoints, steps_of
from unic_cache.student.sharding import whole

FORMAT = 1


def state_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint by name, whole and on the CPU.

    If each process holds a part of the model, they meet at every tensor: all of them must take all.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    if average is not None:
        tensors |= {f"ema.{name}": value for name, value in average.state_dict().items()}
    for name, value in tensors.items():
        yield name, whole(value.detach()).cpu().contiguous()


def save_checkpoint(out: Path, steps: int, tensors: Mapping[str, Tensor], header: Mapping[str, Any], keep: int) -> None:
    """Write OUT/checkpoint.safetensors durably, and keep the `keep` newest ones; `header` is JSON-ready.

    OSError if it cannot be written; the last one then stays.
    """
    about = {**header, "format": FORMAT, "steps": steps, "crc32c": checksum(tensors)}
    data = safetensors.torch.save(dict(tensors), {"unic_cache": json.dumps(about, sort_keys=True)})
    if keep > 1:
        _set_aside(out)
    LocalFolder(out).replace(CHECKPOINT, data)
    older = older_checkpoints(out)
    stale = [path for path in older if steps_of(path) >= steps]  # of a run that went on from an earlier one
    for path in {*stale, *[path for path in older if path not in stale][keep - 1 :]}:
        LocalFolder(out).delete(path.name)


def mend_checkpoint(out: Path) -> str | None:
    """Put the newest sound checkpoint in the place of a damaged or lost one; what was done, or None if all is well.

    Without an older one nothing is done: loading it will tell what is wrong. ConfigError if all are damaged.
    """
    older = older_checkpoints(out)
    wrong = _damage(out / CHECKPOINT) if older else None
    if wrong is None:
        return None
    sound = next((path for path in older if _damage(path) is None), None)
    if sound is None:
        raise ConfigError(f"{wrong}, and no older checkpoint there is sound; restore a copy of one")
    _link(sound, out / CHECKPOINT)
    return f"{wrong}; going on from the one before, after step {steps_of(sound):,}"


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """The crc32c of the bytes of all tensors, by name."""
    found = 0
    for name in sorted(tensors):
        found = crc32c(tensors[name].reshape(-1).view(torch.uint8).numpy(), found)
    return found


def load_checkpoint(
    out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None
) -> tuple[int, dict[str, Any]]:
    """Load the saved state into model, optimizer and moving average; return (steps done, header).

    ConfigError if it does not fit.
    """
    path = out / CHECKPOINT
    steps, header, tensors = _read(path)
    parameters = dict(model.named_parameters())
    try:
        parts = _parts(tensors)
        model.load_state_dict(parts["model"])
        if average is not None:
            average.load_state_dict(parts["ema"])
        for name, value in parts["optimizer"].items():
            parameter, _, key = name.rpartition(".")
            target = parameters[parameter]
            optimizer.state[target][key] = value if key == "step" else value.to(target.device)
    except (RuntimeError, KeyError) as error:
        raise ConfigError(f"{path}: from another student or other teachers: {str(error)[:300]}") from error
    return steps, header


def trained_weights(out: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """(steps done, the student's state): the moving average if the run kept one. ConfigError without a checkpoint."""
    older = older_checkpoints(out)
    if older and not (out / CHECKPOINT).exists():
        raise ConfigError(
            f"{_missing(out)}; restore it, or continue the run with --resume, which goes on from {older[0].name}"
        )
    steps, _, tensors = _read(out / CHECKPOINT)
    try:
        parts = _parts(tensors)
    except KeyError as error:
        raise ConfigError(f"{out / CHECKPOINT}: not a checkpoint of this release: it has {error}") from error
    return steps, parts["ema"] or parts["model"]


def checkpoint_steps(out: Path) -> int | None:
    """Steps done, by the header of the newest checkpoint; None if there is none that can be read."""
    try:
        return _steps_in(out / CHECKPOINT)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def _parts(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors by their first word. KeyError for an unknown one."""
    parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimizer": {}, "ema": {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        parts[kind][rest] = value
    return parts


def _read(path: Path) -> tuple[int, dict[str, Any], dict[str, torch.Tensor]]:
    """(steps done, header, tensors) of the file. ConfigError unless a run of this release wrote it."""
    if not path.exists():
        raise ConfigError(f"{_missing(path.parent)}; restore it")
    try:
        with safe_open(path, "pt") as opened:
            found = (opened.metadata() or {}).get("unic_cache")
            header = None if found is None else json.loads(found)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, ValueError) as error:
        raise ConfigError(f"{path}: cannot resume from it ({error}); start the run again in another --out") from error
    if not isinstance(header, dict) or "format" not in header or not isinstance(header.get("steps"), int):
        raise ConfigError(f"{path}: not a checkpoint of `unic-cache distill`; choose another --out")
    if header["format"] != FORMAT:
        raise ConfigError(f"{path}: format {header['format']!r}, but this release resumes from format {FORMAT}")
    if header.get("crc32c", known := checksum(tensors)) != known:
        raise ConfigError(f"{path}: damaged, its bytes are not as they were written; restore a copy of it")
    return header["steps"], header, tensors


def _missing(out: Path) -> str:
    return f"{out} has no {CHECKPOINT}, which holds the projectors and AdamW's state"


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is sound."""
    try:
        _read(path)
    except (ConfigError, OSError) as error:
        return str(error).partition(";")[0]
    return None


def _set_aside(out: Path) -> None:
    """Give the newest checkpoint a second name, by its steps."""
    path = out / CHECKPOINT
    if path.exists():
        _link(path, out / OLDER.replace("*", f"{_steps_in(path):06d}"))


def _steps_in(path: Path) -> int:
    with safe_open(path, "pt") as opened:
        return int(json.loads((opened.metadata() or {})["unic_cache"])["steps"])


def _link(path: Path, other: Path) -> None:
    """Make `other` the same file, atomically, or a copy where the file system has no links."""
    temporary = other.parent / f".tmp-0-{other.name}"
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
        sync_file(temporary)
    temporary.replace(other)
    temporary.unlink(missing_ok=True)  # rename(2) leaves both names of one file
    sync_folder(other.parent)
