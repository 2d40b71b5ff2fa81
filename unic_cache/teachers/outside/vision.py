"""transformers' vision models as teachers: a table by model_type, their own forward pass, strict weights.

A model_type outside the table is refused: its prefix tokens and its last norm would be guesses. Classes come from the
table, never from a repository's own code, and weights are read without unpickling objects.

At another size than the model's own, positions are resampled as transformers does it for that family.
"""

import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unic_cache.errors import TeacherError
from unic_cache.teachers.outside.files import in_parallel, read_state
from unic_cache.teachers.outside.folders import ModelFolder, opened
from unic_cache.teachers.outside.loaded import CANNOT, Loaded, loaded
from unic_cache.teachers.outside.names import HUB, imported, parsed
from unic_cache.teachers.outside.processors import pixels_of
from unic_cache.teachers.outside.sequences import SequenceNetwork
from unic_cache.teachers.spec import OWN, TRANSFORMERS, TeacherSpec
from unic_cache.token_kinds import CLS, PATCH
from unic_cache.weights.state_dicts import State, first_names

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
VISION = ("vision_model.", "vision_encoder.")  # what precedes the names of a pair's image tower; the first counts
PAIRED = {"vision_config", "vision_config_dict"}  # one of which a pair's config has
TRIFLES = {"transformers_version", "torch_dtype", "dtype", "_name_or_path", "architectures", "_commit_hash", "auto_map"}
LEFT_OUT = re.compile(  # heads, poolers that the table leaves out, decoders, and tables that are made anew
    r"(^|\.)(classifier|cls_classifier|distillation_classifier|decoder|lm_head|pooler\.dense)\.|mask_token$|"
    r"position_ids$|relative_position_index$"
)
FETCHES = re.compile(r"auto_map|implementation|kernel_config|use_kernels|custom_pipelines")
FROM_5 = (5, 0)


@dataclass(frozen=True)
class Family:
    """What a model_type's models are like. Registers, which configs count, come after the other prefix tokens."""

    model: str  # transformers' class
    norm: str = "layernorm"  # the last norm, by its name in the model
    prefix: int = 1  # tokens before the patches, without registers
    cls: str = "norm-cls"
    stride: int | None = None  # px; None: the config's patch size
    pooler: bool = True  # False: its untrained pooler is left out
    shuffles: bool = False  # whether it sorts its patches by noise, as MAE does to drop the last of them


FAMILIES: dict[str, Family] = {
    "vit": Family("ViTModel", pooler=False),
    "deit": Family("DeiTModel", prefix=2, pooler=False),
    "vit_mae": Family("ViTMAEModel", shuffles=True),
    "vit_msn": Family("ViTMSNModel"),
    "ijepa": Family("IJepaModel", prefix=0, cls="grid-mean", pooler=False),
    "beit": Family("BeitModel"),
    "dinov2": Family("Dinov2Model"),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel"),
    "dinov3_vit": Family("DINOv3ViTModel", "norm"),
    "dinov3_convnext": Family("DINOv3ConvNextModel", "layer_norm", stride=32),
    "clip_vision_model": Family("CLIPVisionModel", "post_layernorm"),
    "metaclip_2_vision_model": Family("MetaClip2VisionModel", "post_layernorm"),
    "siglip_vision_model": Family("SiglipVisionModel", "post_layernorm", prefix=0, cls="pooled"),
    "aimv2_vision_model": Family("Aimv2VisionModel", "rms_norm", prefix=0, cls="grid-mean"),
    "tipsv2_vision_model": Family("Tipsv2VisionModel"),
}
INSTEAD = {  # model types that are refused, and what there is instead
    "siglip2": "its input is patches, not images (NaFlex); `unic-cache teachers siglip2` lists timm's",
    "siglip2_vision_model": "its input is patches, not images (NaFlex); `unic-cache teachers siglip2` lists timm's",
    "radio": "`unic-cache teachers c-radio` lists timm's, with all their class tokens",
    "sam": "`unic-cache teachers sam` lists timm's, with the neck",
}


def spec_in_transformers(folder: ModelFolder, raw: Mapping[str, Any], size: int | None) -> TeacherSpec:
    """The spec of a model by its config.json and its processor. TeacherError if it cannot be a teacher."""
    config = _config(folder.name, raw)
    family, pixels = FAMILIES[config.model_type], pixels_of(folder)
    stride, own = family.stride or _side(config.patch_size), pixels.size or _side(getattr(config, "image_size", None))
    if stride is None or own is None:
        raise TeacherError(f"teacher {folder.name}: its patches and its images must be square")
    at, means = size or own, getattr(config, "use_mean_pooling", False)  # BEiT's: its last norm is of the mean alone
    pools = means or getattr(config, "use_head", False)
    alone = "grid-mean" if getattr(config, "vision_use_head", None) is False else family.cls  # SigLIP without its pool
    return TeacherSpec(
        name=folder.name if at == own else f"{folder.name}@{at}",
        about=f"transformers' {config.model_type} of {folder.place}",
        arch=f"{TRANSFORMERS}:{family.model}",
        arch_options=(),
        input_size=at,
        stride=stride,
        mean=pixels.mean,
        std=pixels.std,
        summary_rules={CLS: "pooled" if pools else alone},
        grid_rules={PATCH: "raw-patch" if means else "norm-patch"},
        key_layout=TRANSFORMERS,
        position_rule=OWN,
        source=folder.name,
        published=folder.published if folder.scheme != HUB else f"{folder.published}, commit {folder.revision}",
        licence=folder.licence(),
        version=version_of(raw),
    )


def load_transformers(spec: TeacherSpec, weights: Path | None) -> Loaded:
    """The model with the weights of its folder, or of a file. TeacherError if they do not fill it exactly."""
    folder = opened(parsed(_place(spec)))
    raw = folder.content("config.json")
    if version_of(raw) != spec.version:
        raise TeacherError(f"teacher {spec.name}: its config.json changed while it was opened; start again")
    config = _config(folder.name, raw)
    family, path = FAMILIES[config.model_type], weights or folder.file(*WEIGHTS)
    state = _vision_only(in_parallel(read_state(path, spec.name, folder if weights is None else None)))
    where = f"the weights of teacher {spec.name} from {path}"
    model = _filled(family, config, state, where)
    extra: dict[str, Any] = {}
    if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
        extra["interpolate_pos_encoding"] = spec.input_size != _side(config.image_size)
    order_T = torch.arange((spec.input_size // spec.stride) ** 2)

    def run(network: Any, images_BCHW: torch.Tensor) -> torch.Tensor | None:
        noise = {"noise": order_T.to(images_BCHW.device).expand(len(images_BCHW), -1)} if family.shuffles else {}
        answer = network(pixel_values=images_BCHW, **extra, **noise)
        pooled: torch.Tensor | None = getattr(answer, "pooler_output", None)
        return pooled

    prefix = family.prefix + int(getattr(config, "num_register_tokens", 0))
    blocks, norm = _blocks(model, config), model.get_submodule(family.norm)
    network = SequenceNetwork(model, blocks, norm, prefix, run, spec)
    return loaded(network, state, path, where)


def version_of(raw: Mapping[str, Any]) -> str:
    """A config's digest, without what changes nothing: two networks of one name differ in it, or in their weights."""
    told = {key: value for key, value in raw.items() if key not in TRIFLES}
    return f"config {hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]}"


def _place(spec: TeacherSpec) -> str:
    """The name of the folder that a spec is of; `source` says otherwise once a user's file was claimed."""
    return spec.name.partition("+")[0].partition("@")[0]


def _config(name: str, raw: Mapping[str, Any]) -> Any:
    """transformers' config of the image tower."""
    kind = str(raw.get("model_type"))
    library = _library(name)
    known = library.CONFIG_MAPPING
    if kind not in known or kind in INSTEAD:
        raise _refusal(name, kind, raw)
    try:
        config = known[kind].from_dict(_plain(raw))
    except Exception as error:  # it checks the types of a config's values, and raises a class of its own
        raise TeacherError(f"teacher {name}: transformers cannot read its config.json: {error}") from error
    if hasattr(config, "vision_config") and not PAIRED & raw.keys():  # transformers would take its defaults
        raise TeacherError(f"teacher {name}: its config.json is of a pair, {kind}, and has no vision_config")
    config = getattr(config, "vision_config", None) or config
    found = str(getattr(config, "model_type", None))
    if found not in FAMILIES:
        raise _refusal(name, found, raw)
    if getattr(config, "quantization_config", None) is not None or "quantization_config" in raw:
        raise TeacherError(f"teacher {name}: its weights are quantized; take those of float32, float16 or bfloat16")
    if getattr(config, "num_channels", 3) != 3:
        raise TeacherError(f"teacher {name}: its images have {config.num_channels} channels, not 3")
    if hasattr(config, "mask_ratio"):  # of MAE: it sees all patches
        config.mask_ratio = 0.0
    return config


def _plain(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what makes transformers fetch code from the hub: classes, and kernels for attention."""
    return {
        key: _plain(value) if isinstance(value, Mapping) else value
        for key, value in raw.items()
        if not FETCHES.search(key)
    }


def _refusal(name: str, kind: str, raw: Mapping[str, Any]) -> TeacherError:
    instead = INSTEAD.get(kind) or (
        "it needs the repository's own code (auto_map), which is never run here; if you trust it, import it yourself "
        "in a py:package.module:factory"
        if "auto_map" in raw
        else "take the same network from timm (timm:NAME) if it is there, or wrap it as py:package.module:factory"
    )
    return TeacherError(
        f"teacher {name}: its model_type {kind!r} is not among those whose tokens are known here "
        f"({', '.join(sorted(FAMILIES))}); {instead}"
    )


def _library(name: str) -> Any:
    library = imported("transformers", name)
    found = tuple(int(part) for part in re.findall(r"\d+", library.__version__)[:2])
    if found < FROM_5:
        raise TeacherError(f"teacher {name}: it needs transformers 5 or later, and {library.__version__} is installed")
    return library


def _vision_only(state: State) -> State:
    """The image tower's tensors, of a pair with a text tower."""
    for prefix in VISION:
        inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if inside:
            return inside
    return state


def _filled(family: Family, config: Any, state: State, where: str) -> Any:
    """The model with every tensor from `state`, in float32."""
    library = importlib.import_module("transformers")
    before, options = library.logging.get_verbosity(), {} if family.pooler else {"add_pooling_layer": False}
    library.logging.set_verbosity(library.logging.CRITICAL)  # its report of what did not fit is ours to give
    bars = library.logging.is_progress_bar_enabled()
    library.logging.disable_progress_bar()
    try:
        model, told = getattr(library, family.model).from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # it lists them, and below they are refused
            **options,
        )
    except CANNOT as error:
        raise TeacherError(f"{where} do not fit its model: {str(error).strip()[:400]}") from error
    finally:
        library.logging.set_verbosity(before)
        if bars:
            library.logging.enable_progress_bar()
    missing = sorted(name for name in told["missing_keys"] if not name.endswith("mask_token"))  # which is not used
    unexpected = sorted(name for name in told["unexpected_keys"] if not LEFT_OUT.search(name))
    wrong = [f"{key} {tuple(given)}, where it has {tuple(own)}," for key, given, own in sorted(told["mismatched_keys"])]
    wrong += sorted(map(str, told.get("error_msgs", ())))
    offenders = [*(f"{name} is missing" for name in missing), *(f"{name} is not part of it" for name in unexpected)]
    offenders += [f"{text} does not fit" for text in wrong]
    if offenders:
        raise TeacherError(
            f"{where} do not fit its model, {family.model}: {first_names(offenders)}. Are they another model's?"
        )
    return model


def _blocks(model: nn.Module, config: Any) -> list[nn.Module]:
    """The transformer's blocks; none of a network without."""
    depth = getattr(config, "num_hidden_layers", None)
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    return list(lists[0]) if lists else []


def _side(value: Any) -> int | None:
    """The side of a square, which configs give as one number or two; None if it is none."""
    height, width = value if isinstance(value, list | tuple) else (value, value)
    return int(height) if height == width and height else None
