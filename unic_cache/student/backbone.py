"""The student's encoder: any plain Vision Transformer of timm, its block outputs and its evaluation feature.

UNIC's student is a ViT-B/16 with random weights and drop-path rising from 0 to 0.1 over the blocks. The ladder reads
the blocks' raw outputs; the final norm is used in evaluation only, so no loss reaches it.

Letters: B images, H and W pixels, C the 3 colours, T patch tokens, D the encoder's width.
"""

import dataclasses
import difflib
import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from unic_cache.errors import ConfigError
from unic_cache.inputs import network_input
from unic_cache.student.weights import start_from

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class EncoderSpec:
    """The architecture and its input, without weights. Made by `encoder_spec`."""

    name: str  # timm's
    img_size: int  # pixels, height and width
    patch_size: int  # pixels, height and width
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

    ConfigError for a name that timm does not know, a model that is not a plain ViT, or sizes that do not divide.
    """
    image, patch = _own_sizes(name)
    return EncoderSpec(
        name, image if img_size is None else img_size, patch if patch_size is None else patch_size, drop_path
    )


def build_encoder(
    spec: EncoderSpec, seed: int, init: str | None = None, resample: Collection[str] = ()
) -> VisionTransformer:
    """The encoder, in training mode: random weights that depend on `seed` alone, or those of `init`.

    `init` is a file (.safetensors, or .pth without pickled objects) or a timm name with pretrained weights. If
    `resample` names "positions" or "patches", they are resampled to the spec's size. Only parameters that a loss on the
    blocks' outputs reaches require gradients. ConfigError if weights cannot be loaded or do not fit.
    """
    _own_sizes(spec.name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        encoder = timm.create_model(
            spec.name,
            num_classes=0,
            img_size=spec.img_size,
            patch_size=spec.patch_size,
            drop_path_rate=spec.drop_path,
        )
    if init is not None:
        start_from(encoder, init, resample)
    for unused in (encoder.norm, encoder.fc_norm):
        unused.requires_grad_(False)
    return encoder


def block_tokens(encoder: VisionTransformer, images_BCHW: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Raw outputs (cls_BD, patch_BTD) of every block, first to last, without the final norm.

    The mean of the patch tokens stands in for a missing class token. Register tokens are left out.
    """
    outputs = encoder.forward_intermediates(
        images_BCHW, return_prefix_tokens=True, norm=False, output_fmt="NLC", intermediates_only=True
    )
    if encoder.has_class_token:
        return [(prefix_BRD[:, 0], patch_BTD) for patch_BTD, prefix_BRD in outputs]
    patches = [output[0] if isinstance(output, tuple) else output for output in outputs]
    return [(patch_BTD.mean(dim=1), patch_BTD) for patch_BTD in patches]


def embed(encoder: VisionTransformer, images_BCHW: Tensor) -> Tensor:
    """The evaluation feature (B, D), timm's output without head: for most ViTs the normed class token."""
    feature_BD: Tensor = encoder(images_BCHW)
    return feature_BD


def tokens(encoder: VisionTransformer, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """`embed`'s feature (B, D) and the patch tokens after the final norm (B, T, D), in one forward pass."""
    features_BND = encoder.forward_features(images_BCHW)
    return encoder.forward_head(features_BND), features_BND[:, encoder.num_prefix_tokens :]


def prepare(views_BHWC: Tensor, spec: EncoderSpec) -> Tensor:
    """uint8 views of any size as the encoder's input, contiguous float32 (B, C, H, W) on the views' device."""
    return network_input(views_BHWC, spec.img_size, spec.mean, spec.std).contiguous()


@functools.cache
def _own_sizes(name: str) -> tuple[int, int]:
    """Image and patch size (pixels) of timm's model, built without storage. ConfigError if it is not a plain ViT."""
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = (
            f"did you mean {' or '.join(close)}?" if close else "try vit_tiny_patch16_224, or timm.list_models('vit*')"
        )
        raise ConfigError(f"timm knows no model {name!r}; {hint}")
    try:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
    except RuntimeError as error:
        raise ConfigError(f"timm cannot make {name!r}: {error}") from error
    if type(model) is not VisionTransformer or not isinstance(model.patch_embed, PatchEmbed):
        raise ConfigError(
            f"{name} is a {type(model).__name__}, but a student must be one of timm's plain VisionTransformers, such "
            "as vit_tiny_patch16_224 or vit_base_patch16_224"
        )
    if model.attn_pool is not None:
        raise ConfigError(
            f"{name} pools by attention ({model.global_pool!r}), which distillation would leave untrained; choose a "
            "ViT that pools by token or average"
        )
    return int(model.patch_embed.img_size[0]), int(model.patch_embed.patch_size[0])
