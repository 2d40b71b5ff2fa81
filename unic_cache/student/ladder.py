"""The ladder of projectors: what turns the encoder's tokens into guesses of every teacher's tokens.

One MLP for each teacher, token type (class, patch) and encoder block reads the block's raw output; the outputs of all
blocks are summed. The ladder teaches every depth directly, and is thrown away after training (UNIC, arXiv 2408.05088).

Letters: B images, T patch tokens of the student and S of a teacher, D the encoder's width, P a teacher's; h, w grids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unic_cache.errors import ConfigError
from unic_cache.student.backbone import block_tokens

Grid = tuple[int, int]
Tokens = dict[str, Tensor]  # {"cls": (B, P), "patch": (B, S, P)}, or one of the two
INIT_STD = 0.02
LAST_EXPANSION = 4  # of the hidden width, on the last block


@dataclass(frozen=True)
class TargetSpec:
    """What one teacher gives: the widths of its class and patch tokens (None where it lacks one) and its patch grid."""

    cls_dim: int | None
    patch_dim: int | None
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if self.cls_dim is None and self.patch_dim is None:
            raise ConfigError("a teacher with neither class nor patch tokens has nothing to teach")
        if self.patch_dim is not None and self.grid is None:
            raise ConfigError("a teacher with patch tokens must say its grid")


class Ladder(nn.Module):
    """sum over blocks b of Linear(D, h_b) - GELU - Linear(h_b, P), with h_b = D, and 4 D on the last block.

    Weights are drawn from a normal of std 0.02 truncated at +-2 and depend on `seed` alone; biases are zero. UNIC's
    code fixes h at 768 and 3072, which is D and 4 D of its ViT-B.
    """

    def __init__(self, width: int, depth: int, targets: Mapping[str, TargetSpec], seed: int) -> None:
        super().__init__()
        if not targets:
            raise ConfigError("a student needs at least one teacher")
        self.targets = dict(targets)
        self.heads = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for name, target in self.targets.items():
                for kind, dim in (("cls", target.cls_dim), ("patch", target.patch_dim)):
                    if dim is not None:
                        self.heads[_module_name(name, kind)] = _projectors(width, depth, dim)

    def forward(self, blocks: Sequence[tuple[Tensor, Tensor]], grid: Grid) -> dict[str, Tokens]:
        """Guesses {teacher: {"cls": (B, P), "patch": (B, S, P)}} from the (cls_BD, patch_BTD) of every block.

        `grid` is the student's (T = h * w); patch tokens are sampled at each teacher's token centres first.
        """
        cls_tokens = [cls_BD for cls_BD, _ in blocks]
        patches: dict[Grid, list[Tensor]] = {}
        guesses: dict[str, Tokens] = {}
        for name, target in self.targets.items():
            guess = guesses[name] = {}
            if target.cls_dim is not None:
                guess["cls"] = self._project(name, "cls", cls_tokens)
            if target.patch_dim is not None and target.grid is not None:
                if target.grid not in patches:
                    patches[target.grid] = [resample_tokens(patch, grid, target.grid) for _, patch in blocks]
                guess["patch"] = self._project(name, "patch", patches[target.grid])
        return guesses

    def _project(self, name: str, kind: str, tokens: Sequence[Tensor]) -> Tensor:
        projectors = self.heads[_module_name(name, kind)].children()
        first, *others = (projector(token) for projector, token in zip(projectors, tokens, strict=True))
        guess: Tensor = sum(others, start=first)
        return guess


class Student(nn.Module):
    """Encoder and ladder as one module, so that a data-parallel wrapper sees a single forward."""

    def __init__(self, encoder: VisionTransformer, ladder: Ladder) -> None:
        super().__init__()
        self.encoder = encoder
        self.ladder = ladder

    def forward(self, images_BCHW: Tensor) -> dict[str, Tokens]:
        """Prepared images to guesses of every teacher's standardized tokens."""
        guesses: dict[str, Tokens] = self.ladder(
            block_tokens(self.encoder, images_BCHW), tuple(self.encoder.patch_embed.grid_size)
        )
        return guesses


def resample_tokens(patch_BTD: Tensor, grid: Grid, target_grid: Grid) -> Tensor:
    """Tokens on `grid` sampled bilinearly at the token centres of `target_grid` (align_corners=False): (B, S, D).

    Targets are never resampled: that would blur them. Two small matrix products in full precision; unlike torch's
    interpolate their gradient is the same on every run, on GPUs too.
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
    """(target, size) weights of linear interpolation at the target cells' centres, edges clamped; kept a device."""
    centres = ((torch.arange(target, dtype=torch.float64) + 0.5) * size / target - 0.5).clamp(0, size - 1)
    weights = (1 - (centres[:, None] - torch.arange(size, dtype=torch.float64)).abs()).clamp(min=0)
    return weights.to(device, dtype)


def _projectors(width: int, depth: int, dim: int) -> nn.ModuleList:
    projectors = nn.ModuleList()
    for block in range(depth):
        hidden = width * (LAST_EXPANSION if block == depth - 1 else 1)
        layers = nn.Linear(width, hidden), nn.Linear(hidden, dim)
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=INIT_STD)
            nn.init.zeros_(layer.bias)
        projectors.append(nn.Sequential(layers[0], nn.GELU(), layers[1]))
    return projectors


def _module_name(teacher: str, kind: str) -> str:
    """A name that torch accepts for a module, different for different teachers: dots are written as %2E."""
    return f"{teacher.replace('%', '%25').replace('.', '%2E')}:{kind}"
