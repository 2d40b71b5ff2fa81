"""DUNE's projectors: for each teacher one transformer block and a linear layer, on the last level's output.

The block attends over the student's raw [CLS, patches], so that a teacher may place what it knows in other tokens than
the student (Sariyildiz et al., arXiv 2503.14405). The linear layer guesses both kinds of tokens if they are equally
wide, as in DUNE; otherwise there is one for each kind.

Letters: B images, T patch tokens of the student, S of a teacher; D the encoder's width, P a teacher's.
"""

from collections.abc import Mapping, Sequence

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from unic_cache.errors import ConfigError
from unic_cache.student.ladder import INIT_STD, SHARED, Tokens, can_share, head_name, refuse_silent, resample_tokens
from unic_cache.token_kinds import Grid, Kinds

LAYER_SCALE = 1e-4  # DUNE's, at first
HEAD_WIDTH = 64  # channels of an attention head, as in timm's ViTs


class TransformerProjector(nn.Module):
    """Linear(D, P) of a pre-norm block (MLP 4 D) that reads the last level's [CLS, patches].

    Weights are drawn from a normal of std 0.02 truncated at +-2 and depend on `seed` alone; biases are zero.
    ConfigError if there is no teacher, or one without tokens, or for `hidden` and `shared`, which are the ladder's.
    """

    def __init__(
        self,
        widths: Sequence[tuple[int, int]],
        targets: Mapping[str, Kinds],
        seed: int,
        hidden: tuple[int, int] | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__()
        refuse_silent(targets)
        width, patches = widths[-1]
        if width != patches:
            raise ConfigError(
                f"--projector transformer reads a summary and patch tokens of equal width, and this student's have "
                f"{width:,} and {patches:,} channels; choose another student or another projector"
            )
        if hidden is not None:
            raise ConfigError("--ladder-widths are for the ladder; --projector transformer has a block of 4 d")
        if shared:
            raise ConfigError(
                "--shared-projectors is for the ladder; in --projector transformer all kinds share a block"
            )
        self.targets = {name: dict(kinds) for name, kinds in targets.items()}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.heads = nn.ModuleDict({head_name(name, SHARED): _Head(width, own) for name, own in targets.items()})

    def forward(
        self,
        levels: Sequence[tuple[Tensor, Tensor]],
        grids: Sequence[Grid],
        seen: Mapping[Grid, Tensor] | None = None,
    ) -> dict[str, Tokens]:
        """As `Ladder.forward`: guesses {teacher: {kind: (B, P) or (B, S, P)}} from the last of the levels."""
        (cls_BD, patch_BTD), grid = levels[-1], grids[-1]
        tokens_BND = torch.cat([cls_BD[:, None], patch_BTD], dim=1)
        return {name: self.heads[head_name(name, SHARED)](tokens_BND, grid, seen or {}) for name in self.targets}


class _Head(nn.Module):
    """One teacher's block and its linear layers."""

    def __init__(self, width: int, kinds: Kinds) -> None:
        super().__init__()
        self.kinds = kinds
        self.block = Block(width, attention_heads(width), qkv_bias=True, init_values=LAYER_SCALE)
        self._linear_of = {kind: head_name("", SHARED if can_share(kinds) else kind) for kind in kinds}
        widths = {self._linear_of[kind]: tokens.channels for kind, tokens in kinds.items()}
        self.linear = nn.ModuleDict({name: nn.Linear(width, channels) for name, channels in widths.items()})
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=INIT_STD)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens_BND: Tensor, grid: Grid, seen: Mapping[Grid, Tensor]) -> Tokens:
        """{kind: (B, P) or (B, S, P)} from the student's class token and its T = h * w patches (N = 1 + T)."""
        cls_B1D, patch_BTD = self.block(tokens_BND).split([1, tokens_BND.shape[1] - 1], dim=1)
        guesses: Tokens = {}
        for kind, tokens in self.kinds.items():
            if tokens.grid is None:
                found = cls_B1D[:, 0]
            else:  # sampled before the linear layer, which gives the same: it often leaves fewer tokens
                found = resample_tokens(patch_BTD, grid, tokens.grid)
                if tokens.grid in seen:
                    found = found.take_along_dim(seen[tokens.grid][..., None], dim=1)
            guesses[kind] = self.linear[self._linear_of[kind]](found)
        return guesses


def attention_heads(width: int) -> int:
    """How many heads a block of `width` channels has: as many as divide it and have 64 channels or more."""
    return max(heads for heads in range(1, max(1, width // HEAD_WIDTH) + 1) if width % heads == 0)
