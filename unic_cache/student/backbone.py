"""The student's encoder: a timm model, its levels and its evaluation feature, whatever its family.

UNIC's student is a ViT-B/16 with random weights and drop-path rising from 0 to 0.1 over the blocks. The ladder reads
the blocks' raw outputs; the final norm is used in evaluation only, so no loss reaches it. `anatomy` has the rules for
other families.

Letters: B images, H and W pixels, C the 3 colours, T patch tokens, D channels.
"""

import dataclasses
import difflib
import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

import timm
import torch
from torch import Tensor, nn

from unic_cache.errors import ConfigError
from unic_cache.inputs import network_input
from unic_cache.student.anatomy import Anatomy, examined, feature_and_patches, is_of_tokens, takes, takes_patch_size
from unic_cache.student.weights import start_from

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CAN = (
    "a student can be a plain ViT, an Eva-type (EVA-02, DINOv3, PE), or a model whose stages timm gives as maps: "
    "ConvNeXt, ResNet, EfficientNet, Swin, MobileNetV4 and others"
)
FAILS = (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError)  # timm's models


@dataclass(frozen=True)
class EncoderSpec:
    """The architecture and its input, without weights. Made by `encoder_spec`."""

    name: str  # timm's
    img_size: int  # pixels, height and width
    patch_size: int  # pixels, height and width; of a model with maps, those of a cell of its last one
    drop_path: float = 0.1  # rate of the last block; rises linearly from 0 at the first
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of RGB in [0, 1]
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.img_size < 1 or self.patch_size < 1 or self.img_size % self.patch_size:
            raise ConfigError(
                f"{self.name}: an image of {self.img_size} px cannot be cut into patches of {self.patch_size} px; "
                "choose --img-size as a multiple of --patch-size"
            )
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop-path {self.drop_path} is out of bounds; choose 0 to below 1")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patch tokens."""
        side = self.img_size // self.patch_size
        return side, side

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` gives an equal spec back."""
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The spec that `to_json` described. ConfigError on missing or unknown fields."""
        fields = {field.name for field in dataclasses.fields(cls)}
        if set(data) != fields:
            raise ConfigError(f"not an encoder's spec: it has {sorted(data)} where {sorted(fields)} are expected")
        return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})


def encoder_spec(
    name: str, img_size: int | None = None, patch_size: int | None = None, drop_path: float = 0.1
) -> EncoderSpec:
    """The spec of timm's `name`; sizes (pixels) default to the model's own.

    ConfigError for a name that timm does not know, a model that cannot be a student, or sizes that do not divide.
    """
    model = _described(name)
    image = _own_size(model, name) if img_size is None else img_size
    if takes_patch_size(model):
        return EncoderSpec(
            name, image, int(model.patch_embed.patch_size[0]) if patch_size is None else patch_size, drop_path
        )
    if drop_path > 0 and not takes(model, "drop_path_rate"):
        raise ConfigError(f"{name}: timm builds a {type(model).__name__} without drop path; choose --drop-path 0")
    side = _examined(name, image, None).grids[-1][0]
    if image % side:
        nearest = round(image / side) * side
        raise ConfigError(
            f"{name}: {image} px are no multiple of the {side} x {side} cells that its last map has there; choose "
            f"--img-size {nearest} or another multiple of 32"
        )
    if patch_size not in {None, image // side}:
        raise ConfigError(f"{name}: a {type(model).__name__} has no patch size to choose; leave out --patch-size")
    return EncoderSpec(name, image, image // side, drop_path)


def build_encoder(spec: EncoderSpec, seed: int, init: str | None = None, resample: Collection[str] = ()) -> nn.Module:
    """The encoder, in training mode: random weights that depend on `seed` alone, or those of `init`.

    `init` is a file (.safetensors, or .pth without pickled objects) or a timm name with pretrained weights. If
    `resample` names "positions" or "patches", they are resampled to the spec's size. Only parameters that a level
    depends on require gradients. ConfigError if weights cannot be loaded or do not fit.
    """
    options, unread = create_options(spec), anatomy(spec).unread
    if takes(_described(spec.name), "drop_path_rate"):
        options["drop_path_rate"] = spec.drop_path
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        encoder: nn.Module = timm.create_model(spec.name, num_classes=0, **options)
    if init is not None:
        start_from(encoder, init, resample)
    for name in unread:
        encoder.get_parameter(name).requires_grad_(False)
    return encoder


def create_options(spec: EncoderSpec) -> dict[str, Any]:
    """What timm is told to build the encoder for evaluation, besides its name and num_classes=0."""
    return _options(spec.name, spec.img_size, spec.patch_size)


def anatomy(spec: EncoderSpec) -> Anatomy:
    """The encoder's levels, and which parameters they depend on. ConfigError if its maps are not the spec's."""
    size = spec.patch_size if takes_patch_size(_described(spec.name)) else None
    found = _examined(spec.name, spec.img_size, size)
    if found.grids[-1] != spec.grid:
        raise ConfigError(
            f"{spec.name} at {spec.img_size} px has a last grid of {found.grids[-1]} and not {spec.grid}: an edited "
            "spec, or another version of timm"
        )
    return found


def embed(encoder: nn.Module, images_BCHW: Tensor) -> Tensor:
    """The evaluation feature (B, D), timm's output without head: for most ViTs the normed class token."""
    feature_BD: Tensor = encoder(images_BCHW)
    return feature_BD


def tokens(encoder: nn.Module, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """`embed`'s feature (B, D) and the patch tokens (B, T, D') on the spec's grid, in one forward pass.

    Patch tokens are those after the final norm, or the cells of the last map as they are.
    """
    return feature_and_patches(encoder, images_BCHW)


def prepare(views_BHWC: Tensor, spec: EncoderSpec) -> Tensor:
    """uint8 views of any size as the encoder's input, contiguous float32 (B, C, H, W) on the views' device."""
    return network_input(views_BHWC, spec.img_size, spec.mean, spec.std).contiguous()


@functools.cache
def _described(name: str) -> Any:
    """timm's model as it is by default, built without storage. ConfigError if there is none of that name."""
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = (
            f"did you mean {' or '.join(close)}?" if close else "try vit_tiny_patch16_224, or timm.list_models('vit*')"
        )
        raise ConfigError(f"timm knows no model {name!r}; {hint}")
    try:
        with torch.device("meta"):
            return timm.create_model(name, num_classes=0)
    except FAILS as error:
        raise ConfigError(f"timm cannot make {name!r}: {error}") from error


def _own_size(model: Any, name: str) -> int:
    """The model's own image size (pixels)."""
    if is_of_tokens(model):
        return int(model.patch_embed.img_size[0])
    published = timm.get_pretrained_cfg(name)
    return 224 if published is None else int(published.input_size[-1])


def _options(name: str, img_size: int, patch_size: int | None) -> dict[str, Any]:
    model = _described(name)
    options: dict[str, Any] = {"img_size": img_size} if takes(model, "img_size") else {}
    return {**options, "patch_size": patch_size} if takes_patch_size(model) else options


@functools.cache
def _examined(name: str, img_size: int, patch_size: int | None) -> Anatomy:
    """The model's anatomy at these sizes (pixels). ConfigError if it cannot be a student."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0, **_options(name, img_size, patch_size))
        return examined(model, img_size)
    except FAILS as error:
        kind = type(_described(name)).__name__
        raise ConfigError(
            f"{name}, a {kind}, cannot be a student at {img_size} px: {str(error)[:200]}; {CAN}"
        ) from error
