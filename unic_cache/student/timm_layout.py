"""The folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` reads, and `hf-hub:` when it is on the hub.

| file | content |
|---|---|
| `config.json` | architecture, its arguments (image and patch size), input size, mean and std |
| `model.safetensors` | the encoder, under timm's names |

timm takes all other keys of `config.json` as not its own, so that a run's settings, or transformers' keys, may stand
beside them. A run's folder is such a layout: its `model.safetensors` is a link to the encoder.
"""

import json
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from unic_cache.files.durable import NO_LINKS
from unic_cache.files.local import LocalFolder
from unic_cache.student.backbone import EncoderSpec, create_options
from unic_cache.student.run_files import CONFIG, ENCODER, MODEL

TRANSFORMERS = {"model_type": "timm_wrapper", "architectures": ["TimmWrapperModel"], "dtype": "float32"}


def timm_config(encoder: Any, spec: EncoderSpec, licences: Collection[str] = ()) -> dict[str, Any]:
    """What timm reads of `config.json`, JSON-ready; its keys are TIMM_KEYS.

    `timm.data.resolve_model_data_config` then gives the student's own size, mean and std, and the largest square in the
    middle of an image.
    `licences` are the teachers'.
    """
    own = getattr(encoder, "pretrained_cfg", None) or {}
    size = [3, spec.img_size, spec.img_size]
    return {
        "architecture": spec.name.partition(".")[0],
        "num_classes": 0,
        "num_features": int(encoder.num_features),
        "model_args": create_options(spec),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": size,
            "fixed_input_size": bool(own.get("fixed_input_size", False)),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": own.get("first_conv"),
            "classifier": own.get("classifier"),
            **({"license": "; ".join(sorted(set(licences)))} if licences else {}),
        },
    }


def config_bytes(config: dict[str, Any]) -> bytes:
    """`config.json`, with sorted keys."""
    return (json.dumps(config, sort_keys=True, indent=1) + "\n").encode()


def folder_line(folder: str | Path) -> str:
    """Python that loads such a folder with timm alone, after `import timm`."""
    return f"timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)"


def lay_out_run(out: Path, encoder: nn.Module, spec: EncoderSpec, licences: Collection[str]) -> str | None:
    """Make a run's folder such a layout, of the encoder that is there or will be; if that cannot be, the reason.

    A copy of a run has a copied file in place of the link, which would grow old: it becomes a link again, or goes.
    OSError if the disk fails.
    """
    why_not = _laid_out(out, encoder, spec, licences)
    if why_not:
        (out / MODEL).unlink(missing_ok=True)
    return why_not


def _laid_out(out: Path, encoder: nn.Module, spec: EncoderSpec, licences: Collection[str]) -> str | None:
    if getattr(encoder, "pretrained_cfg", None) is None:
        return f"{spec.name} is not built by timm's builder, which alone loads weights by name"
    try:
        before = dict(json.loads((out / CONFIG).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        return f"{CONFIG} cannot be read ({error})"
    after = config_bytes({**before, **timm_config(encoder, spec, licences)})
    if after != config_bytes(before):
        LocalFolder(out).replace(CONFIG, after)
    link = out / MODEL
    if link.is_symlink() and link.readlink() == Path(ENCODER):
        return None
    temporary = out / f".tmp-0-{secrets.token_hex(8)}"
    try:
        temporary.symlink_to(ENCODER)
        temporary.replace(link)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno not in NO_LINKS:
            raise
        return f"its file system has no links ({error.strerror})"
    return None
