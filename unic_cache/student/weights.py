"""Weights from elsewhere: read from a file or from timm's collection, and fitted to an encoder.

No pickled object is ever made: .safetensors cannot hold one, and torch refuses it with weights_only.
"""

from collections.abc import Mapping
from pathlib import Path

import huggingface_hub
import timm
import timm.models
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from unic_cache.errors import ConfigError

HUB_TIMEOUT = 5.0  # seconds to answer, before a download is tried
SHOWN = 5  # names or shapes that an error lists


def read_weights(init: str) -> dict[str, Tensor]:
    """The state dict of a file, or of a timm name with pretrained weights. ConfigError where none can be had."""
    if Path(init).is_file():
        return _read_file(init)
    if Path(init).suffix in {".safetensors", ".pth", ".pt", ".bin"} or "/" in init:
        raise ConfigError(f"--init {init}: there is no such file")
    if not timm.is_model(init.partition(".")[0]):
        raise ConfigError(f"--init {init!r} is neither a file nor a model that timm knows")
    return _read_timm(init)


def fit_weights(encoder: VisionTransformer, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into `encoder`, every tensor of it.

    timm resamples position embeddings to another grid and patch kernels to another patch size; a classifier
    (`head.*`) is left out. ConfigError names what is missing, left over or of another shape.
    """
    try:
        given = checkpoint_filter_fn(dict(state), encoder)
    except (RuntimeError, KeyError, ValueError, AttributeError, IndexError, TypeError) as error:
        raise ConfigError(f"{source}: these are not weights of a Vision Transformer ({error})") from error
    given = {name: value for name, value in given.items() if not name.startswith("head.")}
    own = encoder.state_dict()
    faults = [
        *(f"{name} is missing" for name in own if name not in given),
        *(f"{name} has no place" for name in given if name not in own),
        *(
            f"{name} is {tuple(given[name].shape)} where the student has {tuple(value.shape)}"
            for name, value in own.items()
            if name in given and given[name].shape != value.shape
        ),
    ]
    if faults:
        more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise ConfigError(
            f"the weights of {source} do not fit the student: {'; '.join(faults[:SHOWN])}{more}. "
            f"Choose the --student that they were made for"
        )
    encoder.load_state_dict(given)


def _read_file(path: str) -> dict[str, Tensor]:
    try:
        state = timm.models.load_state_dict(path, use_ema=False, weights_only=True)
    except Exception as error:  # what a broken file makes the readers raise is a long list
        raise ConfigError(f"{path}: no weights can be read from it ({str(error)[:300]})") from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"{path} holds no plain state dict (names to tensors)")
    return state


def _read_timm(name: str) -> dict[str, Tensor]:
    """From timm's collection: the local copy where there is one, else downloaded if the hub answers at all."""
    if not timm.models.is_model_pretrained(name):
        raise ConfigError(f"--init {name!r}: timm has no pretrained weights of that name; see timm.list_pretrained()")
    try:
        published = timm.models.get_pretrained_cfg(name)
        local = huggingface_hub.try_to_load_from_cache(str(published.hf_hub_id), "model.safetensors")
        if isinstance(local, str):
            model = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": local})
        else:
            if published.hf_hub_id:
                huggingface_hub.HfApi().model_info(str(published.hf_hub_id), timeout=HUB_TIMEOUT)
            model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # whatever the hub's client and its transport raise
        raise ConfigError(
            f"--init {name!r}: its weights can be neither found on this machine nor downloaded "
            f"({type(error).__name__}: {str(error)[:200]}). Fetch them where there is internet and give the file: "
            f"--init FILE.safetensors"
        ) from error
    state: dict[str, Tensor] = model.state_dict()
    return {key: value.to(torch.float32) for key, value in state.items()}
