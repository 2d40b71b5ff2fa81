"""Small models of families that timm has no test model of, under names that timm knows once this module is imported.

Each is the class, and the unusual parts, of a published model; widths and depths are tiny.
"""

import sys
from functools import partial
from typing import Any

from timm.layers import SwiGLUPacked
from timm.models import build_model_with_cfg, register_model
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def _published(size: int, pixels: dict[str, Any], fixed: bool = True, classifier: str = "head") -> dict[str, Any]:
    return {
        "input_size": (3, size, size), "fixed_input_size": fixed, "classifier": classifier, "first_conv": None,
        "num_classes": 0, "license": "made for a test", **pixels,
    }  # fmt: skip


default_cfgs = {
    "tiny_dinov3": _published(64, IMAGENET),
    "tiny_eva02": _published(56, CLIP),
    "tiny_pe": _published(64, HALF),
    "tiny_siglip": _published(64, HALF),
    "tiny_swin": _published(64, IMAGENET, classifier="head.fc"),
    "tiny_dinov2_g": _published(518, IMAGENET),
    "tiny_metaclip_h": _published(224, CLIP),
    "tiny_vit_reg_gap": _published(64, IMAGENET),
    "tiny_vit_l14": _published(224, IMAGENET),
}


def _made(kind: type[nn.Module], options: dict[str, Any], **own: Any) -> Any:
    """As timm makes its models: by a published description, and with weights if `pretrained`."""
    options = {**own, **options}
    convert = sys.modules[kind.__module__].checkpoint_filter_fn
    return build_model_with_cfg(kind, options.pop("name"), pretrained_filter_fn=convert, **options)


@register_model
def tiny_dinov3(**options: Any) -> Eva:
    """DINOv3: rotary positions, four registers, LayerScale; timm pools its patches although it has a class token."""
    return _made(
        Eva, {**options, "name": "tiny_dinov3"}, img_size=64, patch_size=16, embed_dim=32, depth=3, num_heads=2,
        init_values=1e-5, rope_type="dinov3", rope_temperature=100, use_rot_pos_emb=True, use_abs_pos_emb=False,
        rope_rotate_half=True, use_fc_norm=False, qkv_bias=False, num_reg_tokens=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )  # fmt: skip


@register_model
def tiny_eva02(**options: Any) -> Eva:
    """EVA-02: absolute and rotary positions, SwiGLU with a norm, the final norm after an average of the patches."""
    return _made(
        Eva, {**options, "name": "tiny_eva02"}, img_size=56, patch_size=14, embed_dim=32, depth=3, num_heads=2,
        mlp_ratio=4 * 2 / 3, swiglu_mlp=True, scale_mlp=True, use_rot_pos_emb=True, ref_feat_shape=(4, 4),
    )  # fmt: skip


@register_model
def tiny_pe(**options: Any) -> Eva:
    """Perception Encoder core: a class token, and attention pooling."""
    return _made(
        Eva, {**options, "name": "tiny_pe"}, img_size=64, patch_size=16, embed_dim=32, depth=3, num_heads=2,
        global_pool="map", attn_type="rope", use_rot_pos_emb=True, ref_feat_shape=(4, 4), rope_grid_offset=1.0,
        rope_grid_indexing="xy", use_pre_transformer_norm=True, attn_pool_num_heads=2, attn_pool_mlp_ratio=4.0,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )  # fmt: skip


@register_model
def tiny_siglip(**options: Any) -> VisionTransformer:
    """SigLIP: no class token, and attention pooling."""
    return _made(
        VisionTransformer, {**options, "name": "tiny_siglip"}, img_size=64, patch_size=16, embed_dim=32, depth=3,
        num_heads=2, class_token=False, global_pool="map",
    )  # fmt: skip


@register_model
def tiny_swin(**options: Any) -> SwinTransformer:
    """Swin: windows, maps with channels last."""
    return _made(
        SwinTransformer, {**options, "name": "tiny_swin"}, img_size=64, patch_size=4, embed_dim=16,
        depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=2,
    )  # fmt: skip


@register_model
def tiny_vit_reg_gap(**options: Any) -> VisionTransformer:
    """A plain ViT with two registers and LayerScale, without a class token, that pools by average."""
    return _made(
        VisionTransformer, {**options, "name": "tiny_vit_reg_gap"}, img_size=64, patch_size=16, embed_dim=32, depth=3,
        num_heads=2, class_token=False, reg_tokens=2, init_values=1e-5, global_pool="avg",
    )  # fmt: skip


class Blind(nn.Sequential):
    """A model that gives no maps of its stages."""

    def __init__(self, drop_path_rate: float = 0.0) -> None:
        super().__init__(nn.Conv2d(3, 8, 16, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@register_model
def tiny_blind(pretrained: bool = False, **options: Any) -> Blind:
    """No family's; see `Blind`."""
    return Blind()


@register_model
def tiny_dinov2_g(**options: Any) -> VisionTransformer:
    """DINOv2-g/14 at 518 px: SwiGLU, LayerScale."""
    return _made(
        VisionTransformer, {**options, "name": "tiny_dinov2_g"}, img_size=518, patch_size=14, embed_dim=24, depth=2,
        num_heads=2, init_values=1e-5, mlp_ratio=2.66667 * 2, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU,
    )  # fmt: skip


@register_model
def tiny_metaclip_h(**options: Any) -> VisionTransformer:
    """MetaCLIP-H/14 at 224 px: a norm before the blocks, QuickGELU."""
    return _made(
        VisionTransformer, {**options, "name": "tiny_metaclip_h"}, img_size=224, patch_size=14, embed_dim=32, depth=2,
        num_heads=2, pre_norm=True, act_layer="quick_gelu", norm_layer=nn.LayerNorm,
    )  # fmt: skip


@register_model
def tiny_vit_l14(**options: Any) -> VisionTransformer:
    """ViT-L/14 at 224 px, UNIC-L's student."""
    return _made(
        VisionTransformer, {**options, "name": "tiny_vit_l14"}, img_size=224, patch_size=14, embed_dim=16, depth=3,
        num_heads=2,
    )  # fmt: skip
