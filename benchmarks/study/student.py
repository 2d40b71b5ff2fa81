"""The small student of the ablations, under a name that timm knows once this module is imported.

A plain ViT of width 192 and depth 6 with patches of 8 px: 64 tokens of an image of 64 px, as many as the small scale's
teachers give.
"""

from typing import Any

from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

NAME = "study_vit_w192_d6_p8"


@register_model
def study_vit_w192_d6_p8(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """The student with random weights; there are no others."""
    if pretrained:
        raise RuntimeError(f"{NAME} has no pretrained weights")
    own = {
        name: value
        for name, value in options.items()
        if name not in {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
    }
    return VisionTransformer(**{"img_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3, **own})
