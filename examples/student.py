"""The student of the loop examples: a timm ViT with a linear head for each teacher's token kinds.

It is a plain baseline, not UNIC's ladder, to show what a loop of one's own needs from a cache.

Letters: B images, T tokens of a teacher's grid, N of them that are given, D channels.
"""

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from unic_cache import FeatureDataset


class HeadedStudent(nn.Module):
    """Gives the distillation loss of a batch of `FeatureDataset`."""

    def __init__(self, arch: str, dataset: FeatureDataset, img_size: int, patch_size: int | None = None) -> None:
        super().__init__()
        patch = {} if patch_size is None else {"patch_size": patch_size}
        self.encoder = timm.create_model(arch, num_classes=0, img_size=img_size, **patch)
        self.kinds = dataset.token_kinds
        width = self.encoder.num_features
        self.heads = nn.ModuleDict(
            {
                head_name(t, k): nn.Linear(width, kind.channels)
                for t, kinds in self.kinds.items()
                for k, kind in kinds.items()
            }
        )

    def forward(self, batch: dict) -> Tensor:
        """The mean over teachers and token kinds of 1 - cosine, a scalar."""
        tokens_BTD = self.encoder.forward_features(batch["image"])
        summary_BD = self.encoder.forward_head(tokens_BTD)  # the class token, or what a ViT without one pools
        skipped = self.encoder.num_prefix_tokens
        grid = self.encoder.patch_embed.grid_size
        losses = []
        for teacher, kinds in self.kinds.items():
            for name, kind in kinds.items():
                seen = summary_BD if kind.grid is None else at_grid(tokens_BTD[:, skipped:], grid, kind.grid)
                if kind.grid is not None and "positions" in batch[teacher]:
                    seen = seen.take_along_dim(batch[teacher]["positions"][..., None], dim=1)
                guess = self.heads[head_name(teacher, name)](seen)
                losses.append(1 - functional.cosine_similarity(guess, batch[teacher][name], dim=-1).mean())
        return torch.stack(losses).mean()


def at_grid(tokens_BTD: Tensor, own: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """The student's patch tokens at the centres of a teacher's tokens, bilinearly: (B, height * width, D)."""
    if own == wanted:
        return tokens_BTD
    cells = functional.interpolate(tokens_BTD.mT.unflatten(2, own), size=wanted, mode="bilinear", align_corners=False)
    return cells.flatten(2).mT


def head_name(teacher: str, kind: str) -> str:
    """A name that a module may have."""
    return f"{teacher}/{kind}".replace(".", "-")
