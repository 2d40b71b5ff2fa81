"""`--from RUN`: a student that starts from the whole model of a finished run, its encoder and its projectors.

Size, teachers, views and schedule are the new run's own; AdamW's state and the step start anew.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipelines.command.run_folder import run_settings
from pipelines.training.finished_run import check_finished
from pipelines.training.training_set import target_rules
from unic_cache.cache import CachedTeacher
from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError
from unic_cache.student.backbone import EncoderSpec
from unic_cache.student.checkpoint import trained_weights
from unic_cache.student.export import load_encoder
from unic_cache.student.ladder import head_name
from unic_cache.student.run_files import ENCODER

ALIKE = ("projector", "ladder_widths", "shared_projectors")  # settings that decide the projectors' layout
PREFIX = "ladder.heads."  # of their tensors in a student's state


@dataclass(frozen=True)
class FirstStage:
    """A finished run."""

    folder: Path
    settings: DistillConfig
    spec: EncoderSpec
    provenance: Mapping[str, Any]  # of its encoder
    weights: Mapping[str, Tensor]  # of its student; the moving average, if it kept one

    @property
    def encoder(self) -> str:
        """The file of its encoder."""
        return str(self.folder / ENCODER)


def open_first_stage(config: DistillConfig, spec: EncoderSpec) -> FirstStage | None:
    """The run that --from names; None without it.

    ConfigError unless it is a finished run of a student with the same encoder, but for its size, and such projectors.
    """
    if config.from_run is None:
        return None
    folder = Path(config.from_run)
    flag = f"--from {config.from_run}"
    try:
        settings = run_settings(folder)
        steps, weights = trained_weights(folder)
        _, before, provenance = load_encoder(folder)
        check_finished(folder, settings, steps, provenance)
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from error
    if before.name != spec.name:
        raise ConfigError(f"{flag}: its student is {before.name}, not {spec.name}; add --student {before.name}")
    for name in ALIKE:
        ours, theirs = getattr(config, name), getattr(settings, name)
        if ours != theirs:
            raise ConfigError(
                f"{flag}: its --{name.replace('_', '-')} is {_spelled(theirs)}, not {_spelled(ours)}, and projectors "
                f"fit no others; use the same, or take its encoder alone with --init {folder / ENCODER}"
            )
    return FirstStage(folder, settings, before, provenance, weights)


def take_over(
    student: nn.Module, first: FirstStage, teachers: Sequence[CachedTeacher], standardize: str
) -> dict[str, str]:
    """Load the projectors of teachers that both runs have; {teacher: what became of its projectors}, to be said.

    A projector begins anew where the first stage had no such teacher, or one of other weights, another layout or
    another standardization of the targets. Teachers of the first stage alone are named too. The same network at another
    size (NAME@SIZE) is the same teacher.
    """
    state = student.state_dict()
    said: dict[str, str] = {}
    used: set[str] = set()
    for teacher in teachers:
        before = counterpart(first, teacher)
        own = {name: value for name, value in state.items() if _owner(name) == _key(teacher.name)}
        theirs = {}
        if before is not None:
            named = {name: name.replace(PREFIX + _key(teacher.name), PREFIX + _key(before), 1) for name in own}
            theirs = {name: first.weights[old] for name, old in named.items() if old in first.weights}
            used.add(before)
        why = _anew(first, before, own, theirs, standardize)
        kept = "are taken over" if before == teacher.name else f"are taken over from {before}"
        said[teacher.name] = f"begin anew: {why}" if why else kept
        if not why:
            state |= theirs
    student.load_state_dict(state)
    return said | {
        name: "are left behind: it is no teacher of this run"
        for name in first.provenance["teachers"]
        if name not in used
    }


def counterpart(first: FirstStage, teacher: CachedTeacher) -> str | None:
    """The first stage's teacher of the same network and targets: the same weights and rules, under the same name but
    for '@SIZE'; or None.
    """
    weights = teacher.spec["teacher"]["weights_sha256"]
    rules = target_rules(teacher)
    found = {
        name
        for name, made in first.provenance["teachers"].items()
        if made["weights_sha256"] == weights and made.get("rules", rules) == rules  # older runs do not say
    }
    if teacher.name in found:
        return teacher.name
    return next((name for name in sorted(found) if _sizeless(name) == _sizeless(teacher.name)), None)


def _anew(
    first: FirstStage, before: str | None, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], standardize: str
) -> str:
    """Why a teacher's projectors cannot be taken over from the teacher `before`; "" if they can."""
    if before is None:
        return f"{first.folder} had no teacher of that name and these weights"
    if first.settings.standardize != standardize:
        return f"{first.folder} had its targets standardized by {first.settings.standardize}, not {standardize}"
    if any(name not in theirs or theirs[name].shape != value.shape for name, value in own.items()):
        return f"in {first.folder} they have other token kinds or widths"
    return ""


def _owner(name: str) -> str | None:
    """The key of the teacher whose projector a tensor belongs to; None for the encoder's."""
    return name.removeprefix(PREFIX).partition(".")[0].rpartition(":")[0] if name.startswith(PREFIX) else None


def _key(teacher: str) -> str:
    return head_name(teacher, "").rpartition(":")[0]


def _sizeless(teacher: str) -> str:
    return re.sub(r"@\d+(?=\+|$)", "", teacher)


def _spelled(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else "unset" if value is None else str(value)
