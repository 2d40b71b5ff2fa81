"""The projectors by name, and the student that trains with them.

    images -> encoder -> tokens of every block -> projectors -> guesses of every teacher's tokens -> loss

Projectors are made from (encoder's width, depth, {teacher: kinds}, seed, hidden widths, shared), and are called as
`Ladder.forward` is. They are thrown away after training.

Letters: B images, H and W pixels, C the 3 colours.
"""

from collections.abc import Callable, Mapping

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unic_cache.config import DistillConfig
from unic_cache.student.backbone import block_tokens
from unic_cache.student.drop_path import place_drop_path
from unic_cache.student.ladder import Ladder, LastRung, Tokens
from unic_cache.student.transformer import TransformerProjector
from unic_cache.token_kinds import Grid, Kinds

Blocks = list[tuple[Tensor, Tensor]]  # (cls_BD, patch_BTD) of every block

PROJECTORS: dict[str, Callable[..., nn.Module]] = {
    "ladder": Ladder,
    "last": LastRung,
    "transformer": TransformerProjector,
}


class Student(nn.Module):
    """Encoder and projectors as one module, so that a data-parallel wrapper sees one forward."""

    def __init__(self, encoder: VisionTransformer, ladder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.ladder = ladder  # checkpoints know all projectors by this name
        self.places = place_drop_path(encoder)
        self._tokens: Callable[..., Blocks] = block_tokens

    def forward(self, images_BCHW: Tensor, seen: Mapping[Grid, Tensor] | None = None) -> dict[str, Tokens]:
        """Prepared images to guesses of every teacher's standardized tokens, or of those `seen`: see Ladder.forward."""
        blocks = self._tokens(self.encoder, images_BCHW)
        guesses: dict[str, Tokens] = self.ladder(blocks, tuple(self.encoder.patch_embed.grid_size), seen)
        return guesses

    def compile_encoder(self) -> None:
        """Compile the encoder when it is first used, with the draws that it has without.

        The projectors are left as they are: their products are joined already.
        """
        self._tokens = torch.compile(block_tokens, options={"fallback_random": True})


def build_student(encoder: VisionTransformer, targets: Mapping[str, Kinds], config: DistillConfig) -> Student:
    """The encoder with the projectors that `config` asks for. ConfigError if they cannot be made for these teachers."""
    make = PROJECTORS[config.projector]
    width, depth = encoder.embed_dim, len(encoder.blocks)
    return Student(encoder, make(width, depth, targets, config.seed, config.ladder_widths, config.shared_projectors))
