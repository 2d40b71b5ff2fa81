"""The projectors by name, and the student that trains with them.

    images -> encoder -> tokens of every level -> projectors -> guesses of every teacher's tokens -> loss

Projectors are made from (widths of the encoder's levels, {teacher: kinds}, seed, hidden widths, shared), and are called
as `Ladder.forward` is. They are thrown away after training.

Letters: B images, H and W pixels, C the 3 colours.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from unic_cache.config import DistillConfig
from unic_cache.student.anatomy import Levels, levels_of
from unic_cache.student.backbone import EncoderSpec, anatomy
from unic_cache.student.drop_path import place_drop_path
from unic_cache.student.ladder import Ladder, LastRung, Tokens
from unic_cache.student.transformer import TransformerProjector
from unic_cache.token_kinds import Grid, Kinds

PROJECTORS: dict[str, Callable[..., nn.Module]] = {
    "ladder": Ladder,
    "last": LastRung,
    "transformer": TransformerProjector,
}


class Student(nn.Module):
    """Encoder and projectors as one module, so that a data-parallel wrapper sees one forward."""

    def __init__(self, encoder: nn.Module, ladder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.ladder = ladder  # checkpoints know all projectors by this name
        self.places = place_drop_path(encoder)
        self._levels: Callable[..., Levels] = levels_of

    def forward(self, images_BCHW: Tensor, seen: Mapping[Grid, Tensor] | None = None) -> dict[str, Tokens]:
        """Prepared images to guesses of every teacher's standardized tokens, or of those `seen`: see Ladder.forward."""
        levels, grids = self._levels(self.encoder, images_BCHW)
        guesses: dict[str, Tokens] = self.ladder(levels, grids, seen)
        return guesses

    def compile_encoder(self) -> None:
        """Compile the encoder when it is first used, with the draws that it has without.

        The projectors are left as they are: their products are joined already.
        """
        self._levels = torch.compile(levels_of, options={"fallback_random": True})


def build_student(
    encoder: nn.Module, spec: EncoderSpec, targets: Mapping[str, Kinds], config: DistillConfig
) -> Student:
    """The encoder with the projectors that `config` asks for. ConfigError if they cannot be made for these teachers.

    Parameters of the encoder that no teacher's tokens depend on stop requiring gradients.
    """
    found = anatomy(spec)
    if all(tokens.grid is not None for kinds in targets.values() for tokens in kinds.values()):
        for name in found.unread_by_patches:
            encoder.get_parameter(name).requires_grad_(False)
    make = PROJECTORS[config.projector]
    return Student(encoder, make(found.widths, targets, config.seed, config.ladder_widths, config.shared_projectors))
