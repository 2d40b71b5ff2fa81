"""How timm's models are read as encoders: their levels, and the feature that evaluation reads.

| model | levels | a level's summary | its patch tokens |
|---|---|---|---|
| plain ViT | every block, raw | the class token, or the patch tokens' mean | the block's, no registers |
| Eva-type (EVA-02, DINOv3, PE), BEiT | every block, raw | the same | the same |
| any other that gives maps | the last map of each scale from 4 px a cell on | the mean of its cells | its cells |

Of maps at one scale, all are levels. The evaluation feature is timm's output without a classifier: the final norm of
the last level's summary, where that norm stays as it began (UNIC). Where timm pools otherwise (a mean beside a class
token, attention, a convolution around the pooling), the feature itself is the last level's summary, so that all it
passes through is trained. Plain ViTs that pool by average are the exception: they keep the class token, as ever.

Letters: B images, H and W pixels, C the 3 colours, T patch tokens, D channels, h and w a map's grid.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from timm.layers import PatchEmbed
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unic_cache.token_kinds import Grid

OF_TOKENS = (VisionTransformer, Eva, Beit)  # exactly these classes, not their children
FINEST = 4  # pixels per cell of the finest map that is a level


class Levels(NamedTuple):
    """What one forward pass gives the projectors."""

    tokens: list[tuple[Tensor, Tensor]]  # (summary (B, D), patch tokens (B, T, D')) of every level, first to last
    grids: tuple[Grid, ...]  # of the patch tokens


@dataclass(frozen=True)
class Anatomy:
    """What a model gives at an input size, found by a dry run without memory."""

    widths: tuple[tuple[int, int], ...]  # channels of summary and patch tokens, of every level
    grids: tuple[Grid, ...]
    feature: int  # channels of the evaluation feature
    unread: frozenset[str]  # parameters that no level depends on
    unread_by_patches: frozenset[str]  # parameters that no level's patch tokens depend on


def is_of_tokens(encoder: nn.Module) -> bool:
    """Whether the encoder is a sequence of prefix and patch tokens at one scale, through all its blocks."""
    return type(encoder) in OF_TOKENS


def levels_of(encoder: Any, images_BCHW: Tensor) -> Levels:
    """The tokens of every level."""
    if not is_of_tokens(encoder):
        last, stages = _stages(encoder, images_BCHW)
        tokens = [(map_BDhw.mean(dim=(2, 3)), _cells(map_BDhw)) for map_BDhw in stages]
        tokens[-1] = (encoder.forward_head(last), tokens[-1][1])
        return Levels(tokens, tuple((int(one.shape[2]), int(one.shape[3])) for one in stages))
    alone = not feature_is_read(encoder)
    prefix = int(encoder.num_prefix_tokens)
    outputs = encoder.forward_intermediates(
        images_BCHW, return_prefix_tokens=prefix > 0, norm=False, output_fmt="NLC", intermediates_only=alone
    )
    last, blocks = (None, outputs) if alone else outputs
    if prefix and has_class_token(encoder):
        tokens = [(prefix_BPD[:, 0], patch_BTD) for patch_BTD, prefix_BPD in blocks]
    else:
        patches = [block[0] if isinstance(block, tuple) else block for block in blocks]
        tokens = [(patch_BTD.mean(dim=1), patch_BTD) for patch_BTD in patches]
    if not alone:
        tokens[-1] = (encoder.forward_head(last), tokens[-1][1])
    rows, columns = encoder.patch_embed.grid_size
    return Levels(tokens, ((int(rows), int(columns)),) * len(tokens))


def feature_and_patches(encoder: Any, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The evaluation feature (B, D) and the last level's patch tokens (B, T, D'), in one pass.

    Those of a sequence are taken after its final norm, those of a map as they are.
    """
    if not is_of_tokens(encoder):
        last, stages = _stages(encoder, images_BCHW)
        return encoder.forward_head(last), _cells(stages[-1])
    features_BND = encoder.forward_features(images_BCHW)
    patch_BTD = features_BND[:, int(encoder.num_prefix_tokens) :]
    if type(encoder) is not VisionTransformer and isinstance(encoder.norm, nn.Identity):
        patch_BTD = encoder.fc_norm(patch_BTD)  # the final norm, which timm moves behind the pooling
    return encoder.forward_head(features_BND), patch_BTD


def has_class_token(encoder: Any) -> bool:
    """Whether a class token precedes the patches."""
    return getattr(encoder, "cls_token", None) is not None


def feature_is_read(encoder: Any) -> bool:
    """Whether the last level's summary is the evaluation feature itself, rather than what its final norm reads."""
    if not is_of_tokens(encoder) or getattr(encoder, "attn_pool", None) is not None:
        return True
    pooled_as_read = str(encoder.global_pool) == ("token" if has_class_token(encoder) else "avg")
    return type(encoder) is not VisionTransformer and not pooled_as_read


def takes(model: nn.Module, option: str) -> bool:
    """Whether timm builds the model's class with an option, such as `img_size`."""
    return any(
        option in inspect.signature(vars(one)["__init__"]).parameters
        for one in type(model).__mro__
        if "__init__" in vars(one)
    )


def takes_patch_size(model: Any) -> bool:
    """Whether the size of the model's patches is a choice: one convolution cuts them, and no other layer minds."""
    return is_of_tokens(model) and isinstance(model.patch_embed, PatchEmbed)


def examined(model: Any, size: int) -> Anatomy:
    """The anatomy of a model on the meta device at images of `size` px. What timm raises where it cannot run."""
    model = model.eval()
    if type(model) is VisionTransformer and model.attn_pool is None:
        depth, width = len(model.blocks), int(model.embed_dim)
        rows, columns = model.patch_embed.grid_size
        norms = frozenset(name for name, _ in model.named_parameters() if name.startswith(("norm.", "fc_norm.")))
        return Anatomy(((width, width),) * depth, ((int(rows), int(columns)),) * depth, width, norms, norms)
    found = levels_of(model, torch.empty(2, 3, size, size, device="meta"))
    feature = model(torch.empty(2, 3, size, size, device="meta"))
    if feature.ndim != 2:
        raise ValueError(f"its feature has shape {tuple(feature.shape)}, and not one vector an image")
    patches = [patch_BTD for _, patch_BTD in found.tokens]
    every = [*patches, *(summary_BD for summary_BD, _ in found.tokens)]
    return Anatomy(
        tuple((int(summary_BD.shape[-1]), int(patch_BTD.shape[-1])) for summary_BD, patch_BTD in found.tokens),
        found.grids,
        int(feature.shape[1]),
        _unread(model, every),
        _unread(model, patches),
    )


def _stages(encoder: Any, images_BCHW: Tensor) -> tuple[Any, list[Tensor]]:
    """(the input of the model's head, the maps (B, D, h, w) that are levels)."""
    last, maps = encoder.forward_intermediates(images_BCHW, output_fmt="NCHW")
    by_scale = {map_BDhw.shape[2:]: map_BDhw for map_BDhw in maps}
    if len(by_scale) == 1:
        return last, maps
    width = images_BCHW.shape[-1]
    coarse = [map_BDhw for map_BDhw in by_scale.values() if FINEST * map_BDhw.shape[-1] <= width]
    return last, coarse or maps[-1:]


def _cells(map_BDhw: Tensor) -> Tensor:
    return map_BDhw.flatten(2).transpose(1, 2)


def _unread(model: nn.Module, results: list[Tensor]) -> frozenset[str]:
    """Names of the parameters that none of the results depends on, by autograd's graph."""
    read = {id(variable) for variable in _variables([one.grad_fn for one in results])}
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) not in read)


def _variables(nodes: list[Any]) -> Iterator[Tensor]:
    """Every parameter in the graph behind the nodes."""
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        nodes += [following for following, _ in node.next_functions]
