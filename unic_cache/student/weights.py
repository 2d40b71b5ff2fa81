"""Starting weights: read from a file or from timm's collection, and fitted to an encoder.

No pickled object is ever loaded: .safetensors cannot hold one, and torch refuses it with weights_only.
"""

import logging
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import huggingface_hub
import timm
import timm.models
import torch
from torch import Tensor, nn

from unic_cache.errors import ConfigError, WeightsError
from unic_cache.weights.conversion import Watch, lost_bias, quickgelu_name
from unic_cache.weights.file import read_checkpoint
from unic_cache.weights.state_dicts import State, find, first_names
from unic_cache.weights.untrained import check_values, tell_untrained

HUB_TIMEOUT = 5.0  # seconds for the hub to answer before a download is tried
SHOWN = 5  # names or shapes in an error
KERNEL = "patch_embed.proj.weight"  # "patches"; all else that is resampled, above all pos_embed, is "positions"
FLAGS = {"positions": "--img-size", "patches": "--patch-size"}  # that give it

log = logging.getLogger(__name__)


def read_weights(init: str, shapes: Mapping[str, tuple[int, ...]]) -> State:
    """The tensors of a file, or of a timm name with pretrained weights, for an encoder of `shapes`.

    ConfigError if they cannot be loaded.
    """
    if Path(init).is_file() or (Path(init).is_dir() and not timm.is_model(init)):
        try:
            return find(read_checkpoint(Path(init)), shapes, Path(init)).tensors
        except WeightsError as error:
            raise ConfigError(f"--init: {error}") from error
    if Path(init).suffix in {".safetensors", ".pth", ".pt", ".bin", ".ckpt"} or "/" in init:
        raise ConfigError(f"--init {init}: there is no such file")
    if not timm.is_model(init.partition(".")[0]):
        raise ConfigError(f"--init {init!r} is neither a file nor a model that timm knows")
    return _read_timm(init)


def fit_weights(encoder: nn.Module, state: Mapping[str, Tensor], source: str, resample: Collection[str] = ()) -> None:
    """Load `state` into `encoder`, every tensor of it.

    A classifier is left out. If `resample` names them, timm resamples "positions" to another grid and "patches", the
    kernel, to another size, which is logged. ConfigError names tensors that are missing, left over or of another shape.
    """
    own = encoder.state_dict()
    given = _without_classifier(state, encoder)
    if {name: value.shape for name, value in given.items()} != {name: value.shape for name, value in own.items()}:
        given = _converted(encoder, state, source, resample)
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
        names = "" if set(given) & set(own) else f". The file's own names: {first_names(state)}"
        raise ConfigError(
            f"the weights of {source} do not fit the student: {'; '.join(faults[:SHOWN])}{more}. "
            f"Choose the --student that they were made for{names}"
        )
    try:
        check_values(dict(given), encoder, source)
    except WeightsError as error:
        raise ConfigError(str(error)) from error
    encoder.load_state_dict(given)


def _converted(encoder: nn.Module, state: Mapping[str, Tensor], source: str, resample: Collection[str]) -> State:
    """The tensors by timm's converter for the encoder's family. ConfigError if it would resample what it may not."""
    watch = Watch()
    convert: Callable[[State, nn.Module], State] = getattr(
        sys.modules[type(encoder).__module__], "checkpoint_filter_fn", lambda given, _: given
    )
    try:
        with watch:
            given = _without_classifier(convert(dict(state), encoder), encoder)
    except (RuntimeError, KeyError, ValueError, AttributeError, IndexError, TypeError) as error:
        raise ConfigError(
            f"{source}: these are not weights of the student, a {type(encoder).__name__} ({error}); its names: "
            f"{first_names(state)}"
        ) from error
    if lost := lost_bias(state, given):
        raise ConfigError(
            f"{source} has a bias {lost}, and the student no place for it; take timm's model of the same name with "
            "`_qkvb`, as in --student vit_base_patch16_dinov3_qkvb"
        )
    fits = {name: value.shape for name, value in given.items()} == {k: v.shape for k, v in encoder.state_dict().items()}
    changed = [name for name, x in given.items() if name in state and state[name].numel() != x.numel()]
    if (watch.resampled or changed) and fits:
        _check_resampled(encoder, state, source, resample, watch.kernels)
    return given


def _without_classifier(state: Mapping[str, Tensor], encoder: nn.Module) -> State:
    """The tensors but for those of a classifier, which the encoder lacks."""
    own, published = encoder.state_dict().keys(), getattr(encoder, "pretrained_cfg", None) or {}
    classifier = published.get("classifier") or ()
    parts = ("head", *((classifier,) if isinstance(classifier, str) else classifier))
    return {
        name: value
        for name, value in state.items()
        if name in own or not name.startswith(tuple(f"{part}." for part in parts))
    }


def start_from(encoder: nn.Module, init: str, resample: Collection[str]) -> None:
    """Load the weights of a file or a timm name into `encoder`; see `read_weights` and `fit_weights`."""
    shapes = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    fit_weights(encoder, read_weights(init, shapes), init, resample)
    tell_untrained(encoder, f"--init {init}")


def _check_resampled(
    encoder: nn.Module, state: Mapping[str, Tensor], source: str, resample: Collection[str], kernels: bool
) -> None:
    """Log what was resampled. ConfigError if the user did not give the size."""
    own = encoder.state_dict()
    named = [name for name in own if name in state and state[name].shape != own[name].shape]
    found = [("patches" if name == KERNEL else "positions", name, str(tuple(state[name].shape))) for name in named]
    if not found:  # under other names
        found = [("patches", KERNEL, "an unknown shape")] if kernels else [("positions", "pos_embed", "another grid")]
    for what, name, theirs in found:
        shapes = f"{what} ({name}) are resampled from {theirs} to {tuple(own[name].shape) if name in own else 'fit'}"
        if what not in resample:
            raise ConfigError(
                f"{source} does not fit the student unless its {shapes}; choose the --img-size and --patch-size of the "
                f"weights, or say {FLAGS[what]}{_size(encoder, what)} to have it so"
            )
        log.warning("%s: %s", source, shapes)


def _size(encoder: nn.Module, what: str) -> str:
    """The student's image or patch size in pixels, after a space, if the model says it."""
    size = getattr(getattr(encoder, "patch_embed", None), "img_size" if what == "positions" else "patch_size", None)
    return "" if size is None else f" {int(size[0])}"


def _read_timm(name: str) -> State:
    """Weights from timm's collection: the local copy, or else a download if the hub answers."""
    if not timm.models.is_model_pretrained(name):
        raise ConfigError(f"--init {name!r}: timm has no pretrained weights of that name; see timm.list_pretrained()")
    better = quickgelu_name(name)
    if better is not None:
        log.warning("--init %s: these weights were trained with QuickGELU: take --student and --init %s", name, better)
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
            f"({type(error).__name__}: {str(error)[:200]}). Download them elsewhere and give the file: --init "
            "FILE.safetensors"
        ) from error
    state: dict[str, Tensor] = model.state_dict()
    return {key: value.to(torch.float32) for key, value in state.items()}
