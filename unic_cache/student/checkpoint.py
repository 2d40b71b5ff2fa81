"""A run's state in one file without pickle: safetensors for tensors, JSON in its header for the rest.

| tensor | what |
|---|---|
| `model.NAME` | parameters and buffers of encoder and ladder |
| `optimizer.NAME.exp_avg`, `.exp_avg_sq`, `.step` | AdamW's state of the parameter NAME |
| `ema.NAME` | with --ema, the moving average of `model.NAME` |

The header's `unic_cache` holds the steps done, the number of processes and the fp16 scaler's state. Order and random
draws need no state: both are functions of the step's number. The file is replaced atomically.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from unic_cache.errors import ConfigError
from unic_cache.files.local import LocalFolder
from unic_cache.student.run_files import CHECKPOINT

FORMAT = 1


def save_checkpoint(
    out: Path,
    steps: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    header: Mapping[str, Any],
    average: nn.Module | None = None,
) -> None:
    """Write OUT/checkpoint.safetensors durably, replacing the last one; `header` is JSON-ready.

    OSError if it cannot be written; the last one then stays.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    if average is not None:
        tensors |= {f"ema.{name}": value for name, value in average.state_dict().items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"unic_cache": json.dumps({**header, "format": FORMAT, "steps": steps}, sort_keys=True)}
    LocalFolder(out).replace(CHECKPOINT, safetensors.torch.save(tensors, metadata))


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
    steps, _, tensors = _read(out / CHECKPOINT)
    try:
        parts = _parts(tensors)
    except KeyError as error:
        raise ConfigError(f"{out / CHECKPOINT}: not a checkpoint of this release: it has {error}") from error
    return steps, parts["ema"] or parts["model"]


def _parts(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors by their first word. KeyError for an unknown one."""
    parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimizer": {}, "ema": {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        parts[kind][rest] = value
    return parts


def _read(path: Path) -> tuple[int, dict[str, Any], dict[str, torch.Tensor]]:
    """(steps done, header, tensors) of the file. ConfigError unless a run of this release wrote it."""
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
    return header["steps"], header, tensors
