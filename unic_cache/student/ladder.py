"""The ladder of projectors: turns the encoder's tokens into guesses of every teacher's tokens.

One MLP for each teacher, token kind and level of the encoder (a ViT's block, a stage) reads the level's output; the
outputs of all levels are summed. The ladder teaches every depth directly, and is thrown away after training (UNIC,
arXiv 2408.05088). Summary tokens are guessed from the levels' summaries (a ViT's class token), grid tokens from their
patch tokens. Levels may differ in width and grid.

Heads that read the same tokens (summaries, or patch tokens for one grid) run together, level by level: see `rung`.
The weights are plain parameters, joined anew for every product: the copy is cheap beside the products over a batch, and
parameters that are views of one joined tensor would silently come apart in deepcopy and in `to(device)`.

Letters: B images, T patch tokens of the student, S of a teacher, N of those the loss sees; D a level's width, P a
teacher's; h, w grids; R rows, the tokens of all images; Q the widths of heads that run together, side by side.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import ClassVar

import torch
from torch import Tensor, nn

from unic_cache.errors import ConfigError
from unic_cache.student.rung import Rung
from unic_cache.token_kinds import Grid, Kinds

Tokens = dict[str, Tensor]  # kind -> (B, P) of a summary token, (B, S, P) of grid tokens
Head = tuple[str, str]  # teacher, kind
INIT_STD = 0.02
LAST_EXPANSION = 4  # of the hidden width, on the last level
SHARED = "*"  # in the name of a module that serves all kinds of a teacher; no kind has this name


class Ladder(nn.Module):
    """sum over levels b of Linear(D_b, h_b) - GELU - Linear(h_b, P), with h_b = D_b, and 4 D_b on the last level.

    `widths` are the channels (summary, patch tokens) of every level. Weights are drawn from a normal of std 0.02
    truncated at +-2 and depend on `seed` alone; biases are zero. UNIC's code fixes h at 768 and 3072, which is D and
    4 D of its ViT-B; `hidden` gives (h, h of the last level) for others. With `shared`, a teacher that `can_share` has
    one MLP per level for both its token kinds. ConfigError if there is no teacher, or one without tokens, or if
    `shared` and none can share.
    """

    read: ClassVar = slice(None)  # the levels that have a rung

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
        own = widths[self.read]
        if shared and (unlike := next((pair for pair in own if pair[0] != pair[1]), None)):
            raise ConfigError(
                f"this student's projectors cannot be shared: a level's summary has {unlike[0]:,} channels and its "
                f"patch tokens {unlike[1]:,}; leave out --shared-projectors"
            )
        if shared and not any(map(can_share, targets.values())):
            raise ConfigError(
                f"none of {', '.join(targets)} can share its projectors: that takes one summary and one grid kind of "
                "equal width in the loss; leave out --shared-projectors"
            )
        self.targets = {name: dict(kinds) for name, kinds in targets.items()}
        self._module_of: dict[Head, str] = {
            (name, kind): head_name(name, SHARED if shared and can_share(kinds) else kind)
            for name, kinds in self.targets.items()
            for kind in kinds
        }
        self.heads = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for (name, kind), module in self._module_of.items():
                if module not in self.heads:
                    tokens = self.targets[name][kind]
                    read = [summary if tokens.grid is None else patch for summary, patch in own]
                    self.heads[module] = _projectors(read, tokens.channels, hidden)

    def forward(
        self,
        levels: Sequence[tuple[Tensor, Tensor]],
        grids: Sequence[Grid],
        seen: Mapping[Grid, Tensor] | None = None,
    ) -> dict[str, Tokens]:
        """Guesses {teacher: {kind: (B, P) or (B, S, P)}} from the (cls_BD, patch_BTD) of every level.

        `grids` are the levels' (T = h * w); patch tokens are sampled at each teacher's token centres first. `seen` maps
        a teacher's grid to positions (B, N) int64, none twice in an image: its guesses are then (B, N, P), in that
        order. Grids missing from `seen` are guessed whole.
        """
        found: dict[Head, Tensor] = {}
        read, own = levels[self.read], grids[self.read]
        for target_grid, widths in self._sharing().items():
            if target_grid is None:
                tokens = [cls_BD for cls_BD, _ in read]
            else:
                tokens = [
                    resample_tokens(patch_BTD, grid, target_grid)
                    for (_, patch_BTD), grid in zip(read, own, strict=True)
                ]
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
        rungs = list(zip(*(self.heads[self._module_of[head]].children() for head in widths), strict=True))
        shape, depth = tokens[0].shape[:-1], len(rungs)
        biases_bQ = torch.cat([head.get_parameter("2.bias") for rung in rungs for head in rung]).view(depth, -1)
        # One product sums the biases, repeats them for every row, and gives autocast's precision to all that follows.
        total_RQ = tokens[0].new_ones(shape.numel(), depth) @ biases_bQ
        for token, rung in zip(tokens, rungs, strict=True):
            weights = [head.get_parameter(name) for name in ("0.weight", "0.bias", "2.weight") for head in rung]
            total_RQ = Rung.apply(total_RQ, token, *weights)
        guesses = torch.split(total_RQ, list(widths.values()), dim=1)
        return {head: guess.view(*shape, -1) for head, guess in zip(widths, guesses, strict=True)}


class LastRung(Ladder):
    """The ladder's last rung alone: Linear(D, h) - GELU - Linear(h, P) of the last level's output, with h = 4 D.

    It is what the paper's ablation compares the ladder with. `hidden` is as the ladder's; its first width has no use.
    """

    read = slice(-1, None)


def refuse_silent(targets: Mapping[str, Kinds]) -> None:
    """ConfigError if there is no teacher, or one without tokens."""
    if not targets:
        raise ConfigError("a student needs at least one teacher")
    if silent := [name for name, kinds in targets.items() if not kinds]:
        raise ConfigError(f"teacher {silent[0]} gives no tokens and has nothing to teach; leave it out")


def can_share(kinds: Kinds) -> bool:
    """Whether one MLP can guess all of a teacher's tokens: one summary and one grid kind, of equal width."""
    on_grid = sorted(tokens.grid is not None for tokens in kinds.values())
    return on_grid == [False, True] and len({tokens.channels for tokens in kinds.values()}) == 1


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


def _projectors(widths: Sequence[int], dim: int, hidden: tuple[int, int] | None) -> nn.ModuleList:
    middles = [*widths[:-1], widths[-1] * LAST_EXPANSION]
    if hidden is not None:
        middles = [hidden[0]] * (len(widths) - 1) + [hidden[1]]
    projectors = nn.ModuleList()
    for width, middle in zip(widths, middles, strict=True):
        layers = nn.Linear(width, middle), nn.Linear(middle, dim)
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=INIT_STD)
            nn.init.zeros_(layer.bias)
        projectors.append(nn.Sequential(layers[0], nn.GELU(), layers[1]))
    return projectors


def head_name(teacher: str, kind: str) -> str:
    """A module's name that torch accepts, different for every teacher and kind: dots are written as %2E."""
    teacher, kind = (name.replace("%", "%25").replace(".", "%2E") for name in (teacher, kind))
    return f"{teacher}:{kind.replace(':', '%3A')}"
