"""A student with its projectors: from images to every teacher's tokens, in the teacher's own scale.

    heads = unic_cache.load_heads("out")               # what `unic-cache export RUN out --format heads` made
    found = heads(images)                              # {"dino": {"cls": (B, 768), "patch": (B, 196, 768)}, ...}

A folder has timm's layout for the encoder (see `timm_layout`), and beside it `heads.safetensors`:

| part | content |
|---|---|
| tensor `projectors.NAME` | a projector's parameter, under the name that a run's checkpoint has for it |
| tensor `scale.HEAD`, (P,) or (P, P) | standard deviations, or the inverse of another standardization |
| tensor `offset.HEAD`, (P,) | means: a teacher's token is guess * scale + offset, or guess @ scale + offset |
| header metadata `unic_cache_heads` | JSON, sorted keys, `format` 1 |

HEAD is TEACHER:KIND, with % escapes (`head_name`). The JSON has the `encoder_sha256` of `model.safetensors`, the
`projector` (name, hidden widths, whether shared) and the `teachers` (name -> token kinds, licence, weights' sha256).

Letters: B images, H and W pixels, C the 3 colours, P a teacher's channels.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from unic_cache.errors import ConfigError
from unic_cache.student.anatomy import levels_of
from unic_cache.student.backbone import EncoderSpec, anatomy, prepare
from unic_cache.student.export import load_encoder
from unic_cache.student.ladder import Tokens, head_name
from unic_cache.student.projectors import PROJECTORS
from unic_cache.student.run_files import MODEL
from unic_cache.token_kinds import Kinds, kinds_from_json, kinds_to_json
from unic_cache.weights.writing import safetensors_bytes

HEADS = "heads.safetensors"
METADATA = "unic_cache_heads"
FORMAT = 1

Scale = tuple[Tensor, Tensor]  # (P,) or (P, P), and (P,)


@dataclass(frozen=True)
class Projector:
    """How projectors are made: the settings of `distill`."""

    name: str
    hidden: tuple[int, int] | None
    shared: bool

    def make(self, spec: EncoderSpec, targets: Mapping[str, Kinds]) -> nn.Module:
        """Projectors with random weights. ConfigError if they cannot be made for this encoder and these teachers."""
        if self.name not in PROJECTORS:
            raise ConfigError(f"{HEADS} has projectors called {self.name!r}, which this release lacks; upgrade it")
        return PROJECTORS[self.name](anatomy(spec).widths, targets, 0, self.hidden, self.shared)


class Heads(nn.Module):
    """The encoder, its projectors, and each teacher's scale. Made by `load_heads`, in evaluation mode."""

    def __init__(
        self,
        encoder: nn.Module,
        spec: EncoderSpec,
        projectors: nn.Module,
        scales: Mapping[str, Scale],
        teachers: Mapping[str, Mapping[str, Any]],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.spec = spec
        self.projectors = projectors
        self.teachers = teachers  # name -> JSON-ready: token kinds, licence, weights' sha256
        self.scales = nn.ModuleDict({head: _Scale(*scale) for head, scale in scales.items()})

    def forward(self, images_BCHW: Tensor) -> dict[str, Tokens]:
        """{teacher: {kind: (B, P), or (B, T, P) on its own grid}} of images as the encoder takes them.

        They are float32 in the student's size, mean and std: from `prepare`, or by the transform of `data_config`.
        """
        levels, grids = levels_of(self.encoder, images_BCHW)
        guesses: dict[str, Tokens] = self.projectors(levels, grids)
        return {
            name: {kind: self.scales[head_name(name, kind)](guess) for kind, guess in kinds.items()}
            for name, kinds in guesses.items()
        }

    def prepare(self, views_BHWC: Tensor) -> Tensor:
        """uint8 images (B, H, W, C) of any size as the encoder's input."""
        return prepare(views_BHWC, self.spec)

    @property
    def data_config(self) -> dict[str, Any]:
        """For `timm.data.create_transform(**heads.data_config)`, which prepares a PIL image."""
        size = self.spec.img_size
        return {
            "input_size": (3, size, size),
            "interpolation": "bicubic",
            "mean": self.spec.mean,
            "std": self.spec.std,
            "crop_pct": 1.0,
            "crop_mode": "center",
        }


class _Scale(nn.Module):
    """guess * scale + offset, or guess @ scale + offset."""

    scale: Tensor
    offset: Tensor

    def __init__(self, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, guess: Tensor) -> Tensor:
        scaled = guess @ self.scale if self.scale.ndim == 2 else guess * self.scale
        return scaled + self.offset


def heads_bytes(
    projectors: Mapping[str, Tensor],
    made: Projector,
    scales: Mapping[tuple[str, str], Scale],
    teachers: Mapping[str, tuple[Kinds, Mapping[str, Any]]],
    model: bytes,
) -> bytes:
    """`heads.safetensors`: the projectors' tensors, `scales` by (teacher, kind), teachers' kinds and facts.

    `model` is the encoder's file.
    """
    tensors = {f"projectors.{name}": value for name, value in projectors.items()}
    for head, (scale, offset) in scales.items():
        tensors |= {f"scale.{head_name(*head)}": scale, f"offset.{head_name(*head)}": offset}
    metadata = {
        "format": FORMAT,
        "encoder_sha256": hashlib.sha256(model).hexdigest(),
        "projector": {"name": made.name, "hidden": made.hidden and list(made.hidden), "shared": made.shared},
        "teachers": {name: {**facts, **kinds_to_json(kinds)} for name, (kinds, facts) in teachers.items()},
    }
    plain = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in tensors.items()}
    return safetensors_bytes(plain, {METADATA: json.dumps(metadata, sort_keys=True), "format": "pt"})


def load_heads(folder: str | Path) -> Heads:
    """The student with its projectors, from a folder of `unic-cache export --format heads`.

    ConfigError if a file is missing or damaged, of another format, or of another student than the other file.
    """
    path, model = Path(folder) / HEADS, Path(folder) / MODEL
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; `unic-cache export RUN OUT --format heads` makes it")
    metadata, tensors = _read(path)
    encoder, spec, _ = load_encoder(model)
    if hashlib.sha256(model.read_bytes()).hexdigest() != metadata["encoder_sha256"]:
        raise ConfigError(f"{path} is not of the encoder in {model}: two exports were mixed; copy both files of one")
    try:
        own = metadata["projector"]
        made = Projector(str(own["name"]), own["hidden"] and tuple(own["hidden"]), bool(own["shared"]))
        kinds = {name: kinds_from_json(facts) for name, facts in metadata["teachers"].items()}
        heads = [head_name(name, kind) for name, given in kinds.items() for kind in given]
        scales = {head: (tensors.pop(f"scale.{head}"), tensors.pop(f"offset.{head}")) for head in heads}
        projectors = made.make(spec, kinds)
        projectors.load_state_dict({name.removeprefix("projectors."): value for name, value in tensors.items()})
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ConfigError(f"{path}: damaged or edited ({error!s:.300}); export it again") from error
    return Heads(encoder, spec, projectors, scales, metadata["teachers"]).eval()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(header, tensors). ConfigError unless it is a whole file of this format."""
    try:
        with safe_open(path, "pt") as opened:
            metadata = json.loads((opened.metadata() or {}).get(METADATA, "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, ValueError) as error:
        raise ConfigError(f"{path}: not a whole safetensors file ({error}); export or copy it again") from error
    if not isinstance(metadata, dict) or not {"format", "encoder_sha256", "projector", "teachers"} <= metadata.keys():
        raise ConfigError(f"{path}: a safetensors file, but not of `unic-cache export --format heads`")
    if metadata["format"] != FORMAT:
        raise ConfigError(f"{path}: format {metadata['format']}, and this release reads format {FORMAT}; upgrade it")
    return metadata, tensors
