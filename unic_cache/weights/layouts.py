"""Layouts of weights that timm does not know, to timm's names: Hugging Face's, and DINOv2's blocks in chunks.

| layout | known by | models |
|---|---|---|
| Hugging Face, ViT | `embeddings.patch_embeddings.projection.weight` | DINOv2 (registers too), I-JEPA, MAE, DINO, ViT |
| Hugging Face, DINOv3 | `embeddings.patch_embeddings.weight` | DINOv3 ViT |
| Hugging Face, DINOv3 ConvNeXt | `stages.0.layers.0.depthwise_conv.weight` | DINOv3 ConvNeXt |
| Hugging Face, CLIP | `embeddings.patch_embedding.weight` | SigLIP, SigLIP 2, CLIP, MetaCLIP |
| DINOv2, chunked | `blocks.0.0.norm1.weight` | UNIC, and what DINOv2's trainer saves |

They have query, key and value apart, which timm joins. Positions of a class token that timm's model keeps without a
position of its own are added to that token. What lies beside the encoder (text, decoder, pooler) is left out.
"""

import math
import re
from collections.abc import Mapping
from typing import TypeAlias

import torch

from unic_cache.errors import WeightsError

State: TypeAlias = dict[str, torch.Tensor]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Renames: TypeAlias = tuple[tuple[str, str], ...]

VIT: Renames = (
    (r"embeddings\.(cls_token|mask_token|register_tokens)", r"\1"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.(norm[12]|mlp\.fc[12])\.(.*)", r"blocks.\1.\2.\3"),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.(.*)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.(.*)", r"blocks.\1.norm2.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(.*)", r"blocks.\1.attn.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.(intermediate\.dense|mlp\.weights_in)\.(.*)", r"blocks.\1.mlp.fc1.\3"),
    (r"encoder\.layer\.(\d+)\.(output\.dense|mlp\.weights_out)\.(.*)", r"blocks.\1.mlp.fc2.\3"),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"layernorm\.(.*)", r"norm.\1"),
)
DINOV3: Renames = (
    (r"embeddings\.(cls_token|mask_token|register_tokens)", r"\1"),
    (r"embeddings\.patch_embeddings\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"(?:model\.)?layer\.(\d+)\.(norm[12])\.(.*)", r"blocks.\1.\2.\3"),
    (r"(?:model\.)?layer\.(\d+)\.attention\.q_proj\.(.*)", r"blocks.\1.attn.query.\2"),
    (r"(?:model\.)?layer\.(\d+)\.attention\.k_proj\.(.*)", r"blocks.\1.attn.key.\2"),
    (r"(?:model\.)?layer\.(\d+)\.attention\.v_proj\.(.*)", r"blocks.\1.attn.value.\2"),
    (r"(?:model\.)?layer\.(\d+)\.attention\.o_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"(?:model\.)?layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.gamma_\2"),
    (r"(?:model\.)?layer\.(\d+)\.mlp\.gate_proj\.(.*)", r"blocks.\1.mlp.fc1_g.\2"),
    (r"(?:model\.)?layer\.(\d+)\.mlp\.up_proj\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"(?:model\.)?layer\.(\d+)\.mlp\.down_proj\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (r"norm\.(.*)", r"norm.\1"),
)
CONVNEXT: Renames = (
    (r"(?:model\.)?stages\.0\.downsample_layers\.(.*)", r"stem.\1"),
    (r"(?:model\.)?stages\.(\d+)\.downsample_layers\.(.*)", r"stages.\1.downsample.\2"),
    (r"(?:model\.)?stages\.(\d+)\.layers\.(\d+)\.depthwise_conv\.(.*)", r"stages.\1.blocks.\2.conv_dw.\3"),
    (r"(?:model\.)?stages\.(\d+)\.layers\.(\d+)\.layer_norm\.(.*)", r"stages.\1.blocks.\2.norm.\3"),
    (r"(?:model\.)?stages\.(\d+)\.layers\.(\d+)\.pointwise_conv([12])\.(.*)", r"stages.\1.blocks.\2.mlp.fc\3.\4"),
    (r"(?:model\.)?stages\.(\d+)\.layers\.(\d+)\.gamma", r"stages.\1.blocks.\2.gamma"),
    (r"layer_norm\.(.*)", r"head.norm.\1"),
)
CLIP: Renames = (
    (r"embeddings\.class_embedding", "cls_token"),
    (r"embeddings\.position_embedding\.weight", "pos_embed"),
    (r"embeddings\.patch_embedding\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"pre_layrnorm\.(.*)", r"norm_pre.\1"),
    (r"encoder\.layers\.(\d+)\.layer_norm([12])\.(.*)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(.*)", r"blocks.\1.attn.query.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.k_proj\.(.*)", r"blocks.\1.attn.key.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.v_proj\.(.*)", r"blocks.\1.attn.value.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.(fc[12])\.(.*)", r"blocks.\1.mlp.\2.\3"),
    (r"post_layernorm\.(.*)", r"norm.\1"),
    (r"head\.probe", "attn_pool.latent"),
    (r"head\.attention\.in_proj_(weight|bias)", r"attn_pool.in_proj.\1"),
    (r"head\.attention\.out_proj\.(.*)", r"attn_pool.proj.\1"),
    (r"head\.layernorm\.(.*)", r"attn_pool.norm.\1"),
    (r"head\.mlp\.(.*)", r"attn_pool.mlp.\1"),
)
CHUNKED: Renames = (
    (r"blocks\.\d+\.(\d+)\.mlp\.w12\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"blocks\.\d+\.(\d+)\.mlp\.w3\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (r"blocks\.\d+\.(\d+)\.(.*)", r"blocks.\1.\2"),
    (r"(cls_token|mask_token|register_tokens|pos_embed|patch_embed\..*|norm\..*)", r"\1"),
)
LAYOUTS: Mapping[str, Renames] = {  # a name that only this layout has, under any prefix
    r"embeddings\.patch_embeddings\.projection\.weight": VIT,
    r"embeddings\.patch_embeddings\.weight": DINOV3,
    r"(?:model\.)?stages\.0\.layers\.0\.depthwise_conv\.weight": CONVNEXT,
    r"embeddings\.patch_embedding\.weight": CLIP,
    r"blocks\.0\.0\.norm1\.weight": CHUNKED,
}
INSIDE = re.compile(r"(encoder\.layers?|(model\.)?layer|(model\.)?stages)\.\d")  # of the encoder: never left out
PARTS = ("query", "key", "value")


def translated(tensors: State, shapes: Shapes) -> State:
    """The tensors of a known layout under the names of a timm model of these `shapes`; of any other layout unchanged.

    Every network of the layout in the file stays, under its prefix: which one is meant is not decided here.
    WeightsError if the file has biases that the model has no place for.
    """
    for known, renames in LAYOUTS.items():
        if any(re.fullmatch(known, name) for name in shapes):  # the model's own names
            continue
        matches = (re.fullmatch(rf"(|.*\.){known}", name) for name in tensors)
        prefixes = [match[1] for match in matches if match is not None]
        if prefixes:
            return {
                prefix + name: tensor
                for prefix in prefixes
                for name, tensor in _one(_renamed(tensors, prefix, renames), shapes).items()
            }
    return tensors


def _one(named: State, shapes: Shapes) -> State:
    """One network's tensors, renamed, as timm keeps them."""
    return _positions(_gated(_joined(named, shapes)), shapes)


def _renamed(tensors: State, prefix: str, renames: Renames) -> State:
    """The tensors under a prefix by timm's names; those inside the encoder without such a name keep their own."""
    found: State = {}
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            continue
        own = name.removeprefix(prefix)
        named = (match.expand(new) for pattern, new in renames if (match := re.fullmatch(pattern, own)))
        place = next(named, own if INSIDE.match(own) else None)
        if place is not None:
            found[place] = tensor
    found.pop("mask_token", None)
    if "register_tokens" in found:
        found["reg_token"] = found.pop("register_tokens")
    return found


def _joined(state: State, shapes: Shapes) -> State:
    """Query, key and value as one matrix, and as the biases that the model has."""
    for name in [name for name in state if name.endswith(".attn.query.weight")]:
        attention = name.removesuffix("query.weight")
        weights = [state.pop(f"{attention}{part}.weight") for part in PARTS if f"{attention}{part}.weight" in state]
        biases = {part: state.pop(f"{attention}{part}.bias", None) for part in PARTS}
        state[f"{attention}qkv.weight"] = torch.cat(weights)
        given = {part: bias for part, bias in biases.items() if bias is not None}
        if f"{attention}q_bias" in shapes and "query" in given and "value" in given:
            state |= {f"{attention}q_bias": given.pop("query"), f"{attention}v_bias": given.pop("value")}
        elif f"{attention}qkv.bias" in shapes and given:
            zero = torch.zeros_like(next(iter(given.values())))
            state[f"{attention}qkv.bias"] = torch.cat([given.pop(part, zero) for part in PARTS])
        lost = [part for part, bias in given.items() if bias.any()]
        if lost:
            raise WeightsError(
                f"it has biases {attention}{lost[0]}.bias, and the model has no place for them; take timm's model "
                "of the same name with `_qkvb`"
            )
    for part in ("weight", "bias"):
        pool = state.pop(f"attn_pool.in_proj.{part}", None)
        if pool is not None:
            query, keys_values = pool[: len(pool) // 3], pool[len(pool) // 3 :]
            state |= {f"attn_pool.q.{part}": query, f"attn_pool.kv.{part}": keys_values}
    return state


def _gated(state: State) -> State:
    """Where a gate is beside `fc1`, that is timm's `fc1_x`."""
    gated = {name.replace("fc1_g", "fc1") for name in state if ".mlp.fc1_g." in name}
    return {name.replace(".fc1.", ".fc1_x.") if name in gated else name: tensor for name, tensor in state.items()}


def _positions(state: State, shapes: Shapes) -> State:
    """CLIP's flat embeddings in timm's shapes; the class token with its position where the model adds none to it."""
    for name in ("cls_token", "pos_embed"):
        if name in state and state[name].ndim < 3:
            state[name] = state[name].reshape(1, -1, state[name].shape[-1])
    if "pos_embed" in state and "cls_token" in state and "pos_embed" in shapes:
        ours, theirs = shapes["pos_embed"][1], state["pos_embed"].shape[1]
        if _square(ours) and _square(theirs - 1):
            state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
            state["pos_embed"] = state["pos_embed"][:, 1:]
    return state


def _square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count
