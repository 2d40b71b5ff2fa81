"""The image tower of an open_clip model as a teacher: `open_clip:ARCH/TAG`, or a folder with open_clip_config.json.

A tower that is timm's gets timm's token rules; open_clip's own ViT those of `sequences.py`, before its projection. The
text tower is never built with its real size, nor are its weights kept.
"""

import difflib
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unic_cache.errors import TeacherError
from unic_cache.teachers import positions
from unic_cache.teachers.derive import structure_rules
from unic_cache.teachers.hub import repo_file
from unic_cache.teachers.outside.colours import colours
from unic_cache.teachers.outside.files import in_parallel, read_state
from unic_cache.teachers.outside.folders import ModelFolder, opened
from unic_cache.teachers.outside.loaded import CANNOT, Loaded, Network, loaded, running
from unic_cache.teachers.outside.names import HUB, Outside, imported, parsed
from unic_cache.teachers.outside.names import OPEN_CLIP as SCHEME
from unic_cache.teachers.outside.sequences import SequenceNetwork
from unic_cache.teachers.spec import OPEN_CLIP, TIMM, Rules, TeacherSpec
from unic_cache.teachers.token_rules import Tokens, check_rules, tokens
from unic_cache.teachers.weights import check_fit
from unic_cache.token_kinds import CLS, PATCH
from unic_cache.weights.state_dicts import State

VISUAL = "visual."  # what precedes the names of the image tower
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
DECIDES = ("embed_dim", "vision_cfg", "quick_gelu")  # of a model's description, what the image tower comes from
SHOWN = 4

log = logging.getLogger(__name__)


def spec_by_tag(outside: Outside, size: int | None) -> TeacherSpec:
    """The spec of `open_clip:ARCH/TAG`. TeacherError for an unknown pair, or a tower that cannot be a teacher."""
    library = _library(outside.name)
    arch, _, tag = outside.place.partition("/")
    description, said = library.get_model_config(arch), library.get_pretrained_cfg(arch, tag)
    if description is None:
        close = difflib.get_close_matches(arch, library.list_models(), n=SHOWN)
        raise TeacherError(f"teacher {outside.name}: open_clip has no model {arch!r}; close names: {', '.join(close)}")
    if not said:
        tags = library.list_pretrained_tags_by_model(arch)
        raise TeacherError(
            f"teacher {outside.name}: open_clip has no weights {tag!r} of {arch}, only {', '.join(tags)}"
        )
    if bool(said.get("quick_gelu")) != bool(description.get("quick_gelu")):
        right = f"{arch}-quickgelu" if said.get("quick_gelu") else arch.removesuffix("-quickgelu")
        log.warning(
            "teacher %s: its weights were trained with%s QuickGELU, and do not run so here: say open_clip:%s/%s",
            *(outside.name, "" if said.get("quick_gelu") else "out", right, tag),
        )
    repo = str(said.get("hf_hub") or "").rpartition("/")[0]
    origin = {
        "published": f"open_clip, as {arch}/{tag}: {said.get('hf_hub') or said.get('url')}",
        "licence": ModelFolder(outside.name, HUB, repo).licence() if repo else "not stated by open_clip",
    }
    return _spec(outside.name, f"{arch}/{tag}", description, said, size, origin)


def spec_in_open_clip(folder: ModelFolder, config: Mapping[str, Any], size: int | None) -> TeacherSpec:
    """The spec of a folder in open_clip's layout. TeacherError if its tower cannot be a teacher."""
    _library(folder.name)
    description, said = config.get("model_cfg"), config.get("preprocess_cfg")
    if not isinstance(description, Mapping) or not isinstance(said, Mapping) or "vision_cfg" not in description:
        raise TeacherError(
            f"teacher {folder.name}: its open_clip_config.json lacks model_cfg with vision_cfg, or preprocess_cfg"
        )
    published = folder.published if folder.scheme != HUB else f"{folder.published}, commit {folder.revision}"
    return _spec(
        folder.name, folder.place, description, said, size, {"published": published, "licence": folder.licence()}
    )


def load_open_clip(spec: TeacherSpec, weights: Path | None) -> Loaded:
    """The tower with its published weights, or those of a file. TeacherError if they do not fit it exactly."""
    outside = parsed(spec.name.partition("+")[0].partition("@")[0])
    description = _description(outside)
    if version_of(description) != spec.version:
        raise TeacherError(f"teacher {spec.name}: its description changed while it was opened; start again")
    visual = tower(spec.name, description)
    path = weights or _published_file(outside)
    state = image_tensors(in_parallel(read_state(path, spec.name)))
    shapes = {name: tuple(tensor.shape) for name, tensor in visual.state_dict().items()}
    check_fit(state, shapes, spec.name, str(path))
    visual.load_state_dict(state, strict=True)
    return loaded(_network(visual, spec), state, path, f"the weights of teacher {spec.name} from {path}")


def tower(name: str, description: Mapping[str, Any], device: str = "cpu") -> Any:
    """The image tower that a description is of. TeacherError if open_clip cannot build it."""
    try:
        vision = {key: value for key, value in description["vision_cfg"].items() if key != "timm_model_pretrained"}
        with torch.device(device):
            pair = _library(name).CustomTextCLIP(
                description["embed_dim"], vision, NO_TEXT, quick_gelu=bool(description.get("quick_gelu"))
            )
    except CANNOT as error:
        raise TeacherError(f"teacher {name}: open_clip cannot build its image tower: {error}") from error
    return pair.visual.eval()


def image_tensors(state: State) -> State:
    """The image tower's tensors of a whole model's, or of the tower's own file."""
    inside = {name.removeprefix(VISUAL): tensor for name, tensor in state.items() if name.startswith(VISUAL)}
    return inside or state


def version_of(description: Mapping[str, Any]) -> str:
    """The digest of what an image tower is built from, which releases of open_clip may change."""
    told = {key: description.get(key) for key in DECIDES}
    return f"config {hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]}"


class TimmTower(Network):
    """A tower that is a timm model, by timm's token rules."""

    def __init__(self, trunk: Any, spec: TeacherSpec) -> None:
        super().__init__()
        check_rules(trunk, spec)
        self.trunk = trunk
        self.spec = spec

    def forward(self, images_BCHW: torch.Tensor) -> Tokens:
        """Every kind of the spec."""
        with running(self.spec):
            return tokens(self.trunk, images_BCHW, self.spec)


def _network(visual: Any, spec: TeacherSpec) -> Network:
    """The tower at the spec's input size."""
    if hasattr(visual, "trunk"):
        if spec.input_size != _own_size(visual, spec.name) and hasattr(visual.trunk, "set_input_size"):
            if spec.position_rule != TIMM:
                raise TeacherError(
                    f"teacher {spec.name}: its image tower is timm's, whose positions are resampled by rule {TIMM} "
                    f"alone, not {spec.position_rule}; leave out --positions"
                )
            with running(spec):
                visual.trunk.set_input_size(img_size=spec.input_size)
        return TimmTower(visual.trunk, spec)
    grid = spec.input_size // spec.stride
    table_1ND = positions.resample(visual.positional_embedding.data[None], (grid, grid), 1, spec.position_rule)
    visual.positional_embedding = nn.Parameter(table_1ND[0])
    visual.proj = None  # targets are what comes before it

    def run(network: Any, images_BCHW: torch.Tensor) -> torch.Tensor | None:
        answer = network(images_BCHW)
        pooled: torch.Tensor = answer[0] if isinstance(answer, tuple) else answer
        return pooled if pooled.ndim == 2 else None

    return SequenceNetwork(visual, visual.transformer.resblocks, visual.ln_post, 1, run, spec)


def _spec(
    name: str, label: str, description: Mapping[str, Any], said: Mapping[str, Any], size: int | None, origin: Any
) -> TeacherSpec:
    visual = tower(name, description, "meta")
    stride, summary_rules, grid_rules = _rules(name, visual)
    own = _own_size(visual, name)
    at = size or own
    mean, std = colours(said.get("mean"), said.get("std"), f"teacher {name}: its description's")
    return TeacherSpec(
        name=name if at == own else f"{name}@{at}",
        about=f"the image tower of open_clip's {label}",
        arch=f"{OPEN_CLIP}:{label}",
        arch_options=(),
        input_size=at,
        stride=stride,
        mean=mean,
        std=std,
        summary_rules=summary_rules,
        grid_rules=grid_rules,
        key_layout=OPEN_CLIP,
        position_rule=TIMM,
        source=name,
        version=version_of(description),
        **origin,
    )


def _rules(name: str, visual: Any) -> tuple[int, Rules, Rules]:
    """Stride in px, summary rules, grid rules."""
    if hasattr(visual, "trunk"):
        return structure_rules(name, visual.trunk, _own_size(visual, name))
    if not hasattr(visual, "transformer"):
        raise TeacherError(
            f"teacher {name}: its image tower is open_clip's {type(visual).__name__}; take it from timm, as in "
            "timm:resnet50_clip.openai"
        )
    height, width = visual.patch_size
    if height != width:
        raise TeacherError(f"teacher {name}: its patches of {height} x {width} px are not square")
    plain = visual.attn_pool is None and not visual.final_ln_after_pool
    summary = "norm-cls" if plain and visual.pool_type == "tok" else "pooled"
    return int(height), {CLS: summary}, {PATCH: "norm-patch" if visual.attn_pool is None else "raw-patch"}


def _own_size(visual: Any, name: str) -> int:
    height, width = visual.image_size
    if height != width:
        raise TeacherError(
            f"teacher {name}: its image tower is built for {height} x {width} px; teachers' inputs are square"
        )
    return int(height)


def _description(outside: Outside) -> Any:
    if outside.scheme == SCHEME:
        return _library(outside.name).get_model_config(outside.place.partition("/")[0])
    return opened(outside).content("open_clip_config.json")["model_cfg"]


def _published_file(outside: Outside) -> Path:
    if outside.scheme != SCHEME:
        return opened(outside).file(*FILES)
    arch, _, tag = outside.place.partition("/")
    said = _library(outside.name).get_pretrained_cfg(arch, tag)
    repo, _, file = str(said.get("hf_hub") or "").rpartition("/")
    found = repo_file(repo, (file,) if file else FILES) if repo else f"open_clip knows them at {said.get('url')}"
    if isinstance(found, Path):
        return found
    raise TeacherError(
        f"teacher {outside.name}: its weights cannot be had here: {found}. Pass a file with --weights "
        f"{outside.name}=FILE, or run once on a machine with internet and copy the hub's cache folder here"
    )


def _library(name: str) -> Any:
    return imported("open_clip", name)
