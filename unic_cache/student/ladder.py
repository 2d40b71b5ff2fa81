"""The ladder of projectors: turns the encoder's tokens into guesses of every teacher's tokens.

One MLP for each teacher, token kind and encoder block reads the block's raw output; the outputs of all blocks are
summed. The ladder teaches every depth directly, and is thrown away after training (UNIC, arXiv 2408.05088). Summary
tokens are guessed from the student's class token, grid tokens from its patch tokens.

Heads that read the same tokens (the class token, or patch tokens on one grid) run together, block by block: one product
for all first layers, one GELU, and one product per teacher width for all second layers, added to the sum in place. A
block saves only its hidden values before GELU for backward. The weights are plain parameters, joined anew for every
product: the copy is cheap beside the products over a batch, and parameters that are views of one joined tensor would
silently come apart in deepcopy and in `to(device)`.

Letters: B images, T patch tokens of the student, S of a teacher, N of those the loss sees; D the encoder's width, P a
teacher's; h, w grids. Where heads run together: R rows, the tokens of all images; n heads, m of them of one width; H a
head's hidden width; nH and Q the hidden and the teachers' widths side by side.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu

from unic_cache.errors import ConfigError
from unic_cache.student.backbone import block_tokens
from unic_cache.token_kinds import Grid, Kinds

Tokens = dict[str, Tensor]  # kind -> (B, P) of a summary token, (B, S, P) of grid tokens
Head = tuple[str, str]  # teacher, kind
INIT_STD = 0.02
LAST_EXPANSION = 4  # of the hidden width, on the last block


class Ladder(nn.Module):
    """sum over blocks b of Linear(D, h_b) - GELU - Linear(h_b, P), with h_b = D, and 4 D on the last block.

    Weights are drawn from a normal of std 0.02 truncated at +-2 and depend on `seed` alone; biases are zero. UNIC's
    code fixes h at 768 and 3072, which is D and 4 D of its ViT-B; `hidden` gives (h, h of the last block) for others.
    ConfigError if there is no teacher, or one without tokens.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        targets: Mapping[str, Kinds],
        seed: int,
        hidden: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if not targets:
            raise ConfigError("a student needs at least one teacher")
        if silent := [name for name, kinds in targets.items() if not kinds]:
            raise ConfigError(f"teacher {silent[0]} gives no tokens and has nothing to teach; leave it out")
        self.targets = {name: dict(kinds) for name, kinds in targets.items()}
        self.heads = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for name, kinds in self.targets.items():
                for kind, tokens in kinds.items():
                    self.heads[_module_name(name, kind)] = _projectors(width, depth, tokens.channels, hidden)

    def forward(
        self, blocks: Sequence[tuple[Tensor, Tensor]], grid: Grid, seen: Mapping[Grid, Tensor] | None = None
    ) -> dict[str, Tokens]:
        """Guesses {teacher: {kind: (B, P) or (B, S, P)}} from the (cls_BD, patch_BTD) of every block.

        `grid` is the student's (T = h * w); patch tokens are sampled at each teacher's token centres first. `seen` maps
        a teacher's grid to positions (B, N) int64, none twice in an image: its guesses are then (B, N, P), in that
        order. Grids missing from `seen` are guessed whole.
        """
        found: dict[Head, Tensor] = {}
        for target_grid, widths in self._sharing().items():
            if target_grid is None:
                tokens = [cls_BD for cls_BD, _ in blocks]
            else:
                tokens = [resample_tokens(patch_BTD, grid, target_grid) for _, patch_BTD in blocks]
                if seen is not None and target_grid in seen:
                    places_BN1 = seen[target_grid][..., None]
                    tokens = [patch_BSD.take_along_dim(places_BN1, dim=1) for patch_BSD in tokens]
            found |= self._project(widths, tokens)
        return {name: {kind: found[name, kind] for kind in kinds} for name, kinds in self.targets.items()}

    def _sharing(self) -> dict[Grid | None, dict[Head, int]]:
        """{grid, or None for the class token: {head: width}}: the heads that read the same tokens, sorted by width."""
        sharing: dict[Grid | None, dict[Head, int]] = {}
        for name, kinds in self.targets.items():
            for kind, tokens in kinds.items():
                sharing.setdefault(tokens.grid, {})[name, kind] = tokens.channels
        return {grid: dict(sorted(widths.items(), key=itemgetter(1))) for grid, widths in sharing.items()}

    def _project(self, widths: Mapping[Head, int], tokens: Sequence[Tensor]) -> dict[Head, Tensor]:
        """The guesses (..., P) of heads that read the same tokens (..., D), in the order of `widths`."""
        rungs = list(zip(*(self.heads[_module_name(*head)].children() for head in widths), strict=True))
        shape, depth = tokens[0].shape[:-1], len(rungs)
        biases_bQ = torch.cat([head.get_parameter("2.bias") for rung in rungs for head in rung]).view(depth, -1)
        # One product sums the biases, repeats them for every row, and gives autocast's precision to all that follows.
        total_RQ = tokens[0].new_ones(shape.numel(), depth) @ biases_bQ
        for token, rung in zip(tokens, rungs, strict=True):
            weights = [head.get_parameter(name) for name in ("0.weight", "0.bias", "2.weight") for head in rung]
            total_RQ = _Rung.apply(total_RQ, token, *weights)
        guesses = torch.split(total_RQ, list(widths.values()), dim=1)
        return {head: guess.view(*shape, -1) for head, guess in zip(widths, guesses, strict=True)}


class _Rung(torch.autograd.Function):
    """total + GELU(x W1' + b1) W2' for the n heads of one block, in place and in the precision of `total`.

    Backward recomputes GELU and the joined weights. With one function per block, a block's memory is free and its
    gradients are known before the next one begins.
    """

    @staticmethod
    def forward(ctx: Any, total_RQ: Tensor, x: Tensor, *weights: Tensor) -> Tensor:
        """`weights` are n first weights (H, D), n first biases (H,) and n second weights (P, H)."""
        n = len(weights) // 3
        first, bias, second = weights[:n], weights[n : 2 * n], weights[2 * n :]
        with torch.autocast(x.device.type, enabled=False):
            x_RD = x.to(total_RQ.dtype).flatten(0, -2)
            hidden_RnH = torch.addmm(_joined(bias, x_RD), x_RD, _joined(first, x_RD).T)
            active_nRH = _each(gelu(hidden_RnH), n)
            for heads, columns in _equal_widths(second):
                weight_mPH = _joined(second[heads], x_RD).view(-1, *second[heads.start].shape)
                _each(total_RQ[:, columns], len(weight_mPH)).baddbmm_(active_nRH[heads], weight_mPH.mT)
        ctx.mark_dirty(total_RQ)
        ctx.save_for_backward(x, hidden_RnH, *weights)
        return total_RQ

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RQ: Tensor) -> tuple[Tensor, ...]:
        """The gradients of `total`, `x` and the weights."""
        x, hidden_RnH, *weights = ctx.saved_tensors
        n = len(weights) // 3
        first, bias, second = weights[:n], weights[n : 2 * n], weights[2 * n :]
        grads_second: list[Tensor] = []
        with torch.autocast(x.device.type, enabled=False):
            x_RD = x.to(hidden_RnH.dtype).flatten(0, -2)
            values_RnH = gelu(hidden_RnH)  # becomes its own gradient, head by head, then that of `hidden`
            for heads, columns in _equal_widths(second):
                weight_mPH = _joined(second[heads], x_RD).view(-1, *second[heads.start].shape)
                grad_mRP = _each(grad_RQ[:, columns], len(weight_mPH))
                values_mRH = _each(values_RnH, n)[heads]
                grads_second += torch.bmm(grad_mRP.mT, values_mRH).to(second[0].dtype)
                torch.bmm(grad_mRP, weight_mPH, out=values_mRH)
            torch.ops.aten.gelu_backward.grad_input(values_RnH, hidden_RnH, grad_input=values_RnH)
            grad_x = (values_RnH @ _joined(first, x_RD)).to(x.dtype).view(x.shape)
            grads_first = (values_RnH.T @ x_RD).to(first[0].dtype).chunk(n)
            grads_bias = values_RnH.sum(dim=0, dtype=bias[0].dtype).chunk(n)
        return grad_RQ, grad_x, *grads_first, *grads_bias, *grads_second


def _joined(weights: Sequence[Tensor], like: Tensor) -> Tensor:
    """The weights stacked along their first axis, in the type of `like`; a single one of that type is not copied."""
    if len(weights) == 1:
        return weights[0].to(like.dtype)
    shape = (sum(map(len, weights)), *weights[0].shape[1:])
    return torch.cat(tuple(weights), out=like.new_empty(shape))


def _each(values_RC: Tensor, count: int) -> Tensor:
    """The columns as `count` blocks: a view (count, R, C / count)."""
    return values_RC.view(len(values_RC), count, -1).transpose(0, 1)


def _equal_widths(second: Sequence[Tensor]) -> Iterator[tuple[slice, slice]]:
    """For each run of heads of equal width: the slice of heads, and the slice of their columns in the sum."""
    head = column = 0
    for width, run in groupby(second, key=len):
        count = len(list(run))
        yield slice(head, head + count), slice(column, column + count * width)
        head, column = head + count, column + count * width


class Student(nn.Module):
    """Encoder and ladder as one module, so that a data-parallel wrapper sees one forward."""

    def __init__(self, encoder: VisionTransformer, ladder: Ladder) -> None:
        super().__init__()
        self.encoder = encoder
        self.ladder = ladder

    def forward(self, images_BCHW: Tensor, seen: Mapping[Grid, Tensor] | None = None) -> dict[str, Tokens]:
        """Prepared images to guesses of every teacher's standardized tokens, or of those `seen`: see Ladder.forward."""
        blocks = block_tokens(self.encoder, images_BCHW)
        guesses: dict[str, Tokens] = self.ladder(blocks, tuple(self.encoder.patch_embed.grid_size), seen)
        return guesses


def resample_tokens(patch_BTD: Tensor, grid: Grid, target_grid: Grid) -> Tensor:
    """Tokens on `grid` sampled bilinearly at the token centres of `target_grid` (align_corners=False): (B, S, D).

    Targets are never resampled, which would blur them. Two small matrix products in full precision: unlike that of
    torch's interpolate, their gradient is deterministic on GPUs too.
    """
    if grid == target_grid:
        return patch_BTD
    batch, _, width = patch_BTD.shape
    with torch.autocast(patch_BTD.device.type, enabled=False):
        rows, columns = (
            _sampling_matrix(size, target, patch_BTD.device, patch_BTD.dtype)
            for size, target in zip(grid, target_grid, strict=True)
        )
        patch_BhwD = patch_BTD.reshape(batch, *grid, width)
        return torch.einsum("sh,tw,bhwd->bstd", rows, columns, patch_BhwD).reshape(batch, -1, width)


@lru_cache(maxsize=64)
def _sampling_matrix(size: int, target: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(target, size) weights of linear interpolation at the target cells' centres, edges clamped; once per device."""
    centres = ((torch.arange(target, dtype=torch.float64) + 0.5) * size / target - 0.5).clamp(0, size - 1)
    weights = (1 - (centres[:, None] - torch.arange(size, dtype=torch.float64)).abs()).clamp(min=0)
    return weights.to(device, dtype)


def _projectors(width: int, depth: int, dim: int, hidden: tuple[int, int] | None) -> nn.ModuleList:
    inner, last = hidden or (width, width * LAST_EXPANSION)
    projectors = nn.ModuleList()
    for middle in [inner] * (depth - 1) + [last]:
        layers = nn.Linear(width, middle), nn.Linear(middle, dim)
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=INIT_STD)
            nn.init.zeros_(layer.bias)
        projectors.append(nn.Sequential(layers[0], nn.GELU(), layers[1]))
    return projectors


def _module_name(teacher: str, kind: str) -> str:
    """A module name that torch accepts, different for every teacher and kind: dots are written as %2E."""
    teacher, kind = (name.replace("%", "%25").replace(".", "%2E") for name in (teacher, kind))
    return f"{teacher}:{kind.replace(':', '%3A')}"
