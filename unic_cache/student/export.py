"""The exported encoder: one safetensors file that timm loads directly.

| part | content |
|---|---|
| tensors | the state dict of timm's model with num_classes=0, under timm's names; real numbers in float32 |
| header metadata `unic_cache` | JSON, sorted keys: `format` 1, `spec` (EncoderSpec), `provenance` (how it was made) |
| header metadata `format` | `pt`, which releases 4 of transformers ask for |

The same weights, spec and provenance give the same bytes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from unic_cache.errors import ConfigError
from unic_cache.files.local import LocalFolder
from unic_cache.student.backbone import EncoderSpec, build_encoder, create_options
from unic_cache.student.run_files import ENCODER, MODEL
from unic_cache.student.weights import fit_weights
from unic_cache.weights.writing import safetensors_bytes

FORMAT = 1
METADATA = "unic_cache"


def save_encoder(path: str | Path, encoder: nn.Module, spec: EncoderSpec, provenance: Mapping[str, Any]) -> None:
    """Write the file atomically, replacing an older one. `provenance` is JSON-ready: teachers, steps, versions."""
    target = Path(path)
    LocalFolder(target.parent).replace(target.name, encoder_bytes(encoder, spec, provenance))


def encoder_bytes(encoder: nn.Module, spec: EncoderSpec, provenance: Mapping[str, Any]) -> bytes:
    """The file that `save_encoder` writes."""
    tensors = {
        name: value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype).contiguous()
        for name, value in encoder.state_dict().items()
    }
    metadata = {"format": FORMAT, "spec": spec.to_json(), "provenance": dict(provenance)}
    return safetensors_bytes(tensors, {METADATA: json.dumps(metadata, sort_keys=True), "format": "pt"})


def encoder_file(path: str | Path) -> Path:
    """The file itself, or the one in a folder: a run's, or what `unic-cache export` made."""
    folder = Path(path)
    if not folder.is_dir():
        return folder
    return folder / (MODEL if not (folder / ENCODER).exists() and (folder / MODEL).is_file() else ENCODER)


def load_encoder(path: str | Path) -> tuple[nn.Module, EncoderSpec, dict[str, Any]]:
    """(encoder in evaluation mode, spec, provenance) of a file, or of the folder that holds it: see `encoder_file`.

    ConfigError if the file is missing, broken, not ours or of another format, or if its tensors do not fit.
    """
    file = encoder_file(path)
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; `unic-cache distill --out DIR` makes DIR/{ENCODER}")
    try:
        with safe_open(file, "pt") as opened:
            header = (opened.metadata() or {}).get(METADATA)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ConfigError(f"{file}: not a whole safetensors file ({error}); export or copy it again") from error
    metadata = _metadata(file, header)
    spec = EncoderSpec.from_json(metadata["spec"])
    encoder = build_encoder(spec, seed=0)
    fit_weights(encoder, tensors, str(file))
    return encoder.eval(), spec, dict(metadata["provenance"])


def spec_of_export(path: str | Path) -> EncoderSpec | None:
    """The spec in a file, or in the folder that holds it; None if it is not an exported encoder.

    ConfigError for one of another format.
    """
    found = _told(path)
    return None if found is None else EncoderSpec.from_json(found["spec"])


def provenance_of_export(path: str | Path) -> dict[str, Any] | None:
    """How the encoder in a file or folder was made; None and ConfigError as for `spec_of_export`."""
    found = _told(path)
    return None if found is None else dict(found["provenance"])


def timm_line(spec: EncoderSpec, path: str | Path) -> str:
    """Python that loads the exported encoder with timm alone (after `import timm`), with its sizes and normalisation.

    `timm.data.resolve_model_data_config` then finds the overlay instead of timm's own entry, which may have another
    mean and std.
    """
    overlay = {"input_size": (3, spec.img_size, spec.img_size), "mean": spec.mean, "std": spec.std, "crop_pct": 1.0}
    options = "".join(f"{name}={value}, " for name, value in create_options(spec).items())
    return (
        f"timm.create_model({spec.name!r}, num_classes=0, {options}"
        f"pretrained_cfg_overlay={overlay}, checkpoint_path={str(path)!r})"
    )


def licences_of(provenance: Mapping[str, Any] | None) -> dict[str, str]:
    """{teacher: licence} of a student, and of what it started from, by its provenance."""
    if provenance is None:
        return {}
    teachers = provenance.get("teachers")
    own = dict(teachers) if isinstance(teachers, Mapping) else {}
    start = {made["name"]: made for made in [provenance.get("init")] if made}
    said = {name: str(made.get("licence") or "unknown") for name, made in {**start, **own}.items()}
    return {**licences_of(provenance.get("from")), **said}


def _told(path: str | Path) -> dict[str, Any] | None:
    """The header of a file, or of the one in a folder; None if it is not an exported encoder."""
    file = encoder_file(path)
    try:
        with safe_open(file, "pt") as opened:
            header = (opened.metadata() or {}).get(METADATA)
    except (SafetensorError, OSError):
        return None
    return None if header is None else _metadata(file, header)


def _metadata(file: Path, header: str | None) -> dict[str, Any]:
    try:
        metadata = json.loads(header or "null")
    except json.JSONDecodeError:
        metadata = None
    if not isinstance(metadata, dict) or not {"format", "spec", "provenance"} <= set(metadata):
        raise ConfigError(f"{file}: a safetensors file, but not an encoder that `unic-cache distill` exported")
    if metadata["format"] != FORMAT:
        raise ConfigError(
            f"{file}: exported in format {metadata['format']}, and this unic-cache reads format {FORMAT}; upgrade it"
        )
    return metadata
