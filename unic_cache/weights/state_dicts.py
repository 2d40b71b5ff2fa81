"""Finds a network's tensors in a checkpoint: by their names, at any depth, never by their order.

A checkpoint holds mappings within mappings, with prefixed names in each:

    {"teacher": {"module.backbone.blocks.0.norm1.weight": ...}, "student": {...}, "optimizer": {...}}

A candidate is a mapping and a prefix under which it has names of the network. The candidate with most names wins, then
the one with most matching shapes, then the one PREFERRED by its own name. If there are others, the choice is logged.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from unic_cache.errors import WeightsError
from unic_cache.weights import layouts

State: TypeAlias = layouts.State
Shapes: TypeAlias = layouts.Shapes

PREFERRED = (
    "state_dict",
    "model",
    "teacher",
    "target_encoder",
)  # usual in authors' files; first among candidates that fit equally
DEEPEST = 4  # levels of mappings
ENOUGH = 0.5  # of a network's names, for a file to be meant as this network's
PRETRAINING = (  # parts beside an encoder, and tables that are made anew
    r"mask_token$|decoder_|lm_head\.|cls_pt_layers\.|local_cls_norm\.|.*relative_position_index$"
)
SHOWN = 3  # names in a message

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A network's tensors in a checkpoint, under its names as far as these are known."""

    tensors: State
    taken: str  # mappings and prefix, such as 'teacher.backbone.'; '' for the whole file
    covered: int  # names of the network that it has
    alike: int  # of these, with the network's shape
    size: int  # names of the network

    @property
    def meant(self) -> bool:
        """Whether it has enough names to be this network's."""
        return self.covered > ENOUGH * self.size

    def order(self) -> tuple[Any, ...]:
        """Sorts the best candidate first; equal ones are ambiguous."""
        return -self.covered, -self.alike, _ranks(self.taken)


def mappings(content: Any) -> Iterator[tuple[str, State]]:
    """(path such as 'model.', own tensors) of every mapping in a checkpoint that holds tensors."""

    def walk(inner: Any, path: str, depth: int) -> Iterator[tuple[str, State]]:
        if not isinstance(inner, Mapping) or depth > DEEPEST:
            return
        tensors = {str(key): value for key, value in inner.items() if torch.is_tensor(value)}
        if tensors:
            yield path, tensors
        for key, value in inner.items():
            yield from walk(value, f"{path}{key}.", depth + 1)

    return walk(content, "", 0)


def find(content: Any, shapes: Shapes, path: Path, rename: Callable[[str], str] = str) -> Found:
    """The tensors of the network with these `shapes`; `rename` maps the authors' names to the network's.

    WeightsError if the file holds no named tensors, or several networks that fit equally.
    """
    try:
        groups = [
            (where, {rename(name): x for name, x in layouts.translated(tensors, shapes).items()})
            for where, tensors in mappings(content)
        ]
    except WeightsError as error:
        raise WeightsError(f"weights file {path}: {error}") from error
    if not groups:
        raise WeightsError(f"weights file {path}: no tensors in it, neither flat nor under {', '.join(PREFERRED)}")
    found = [one for where, tensors in groups for one in _under_prefixes(where, tensors, shapes)]
    found.sort(key=Found.order)
    if not found or not found[0].meant:
        where, tensors = min(groups, key=lambda group: _ranks(group[0]))
        return Found(tensors, where, 0, 0, len(shapes))
    best, others = found[0], [one for one in found[1:] if one.meant]
    equals = [one for one in others if one.order() == found[0].order() and not _same(one.tensors, best.tensors)]
    if equals:
        raise WeightsError(
            f"weights file {path}: it holds {len(equals) + 1} networks that fit, under "
            f"{' and '.join(repr(one.taken) for one in [best, *equals])}; save the one you mean to a file of its own"
        )
    if others:
        log.warning(
            "weights file %s: took %s, and left %s",
            path,
            _label(best.taken),
            ", ".join(_label(one.taken) for one in others[:SHOWN]),
        )
    return best


def largest(content: Any, path: Path) -> State:
    """The tensors of the largest mapping of a checkpoint, for a network whose names are not known.

    Of several as large, one that is PREFERRED by its name. WeightsError if there is none, or if the names do not tell
    them apart. What is left is logged, if it may be a network too.
    """
    found = sorted(mappings(content), key=lambda one: (-len(one[1]), _ranks(one[0])))
    if not found:
        raise WeightsError(f"weights file {path}: no tensors in it")
    (taken, tensors), *others = found
    left = {where: x for where, x in others if len(x) > ENOUGH * len(tensors) and not _same(x, tensors)}
    equals = [where for where, x in left.items() if len(x) == len(tensors) and _ranks(where) == _ranks(taken)]
    if equals:
        raise WeightsError(
            f"weights file {path}: it holds {len(equals) + 1} networks of one size, under "
            f"{' and '.join(map(_label, (taken, *equals)))}; save the one you mean to a file of its own"
        )
    if left:
        shown = ", ".join(map(_label, list(left)[:SHOWN]))
        log.warning("weights file %s: took %s, and left %s", path, _label(taken), shown)
    return tensors


def without_shared_prefix(tensors: State) -> State:
    """Names without leading parts that all share, such as `module.` of data parallelism."""
    while tensors:
        first = next(iter(tensors)).partition(".")[0] + "."
        if not all(name.startswith(first) for name in tensors):
            break
        tensors = {name.removeprefix(first): tensor for name, tensor in tensors.items()}
    return tensors


def first_names(names: Collection[str]) -> str:
    """The first few names, for a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(list(names)[:SHOWN])}{more}"


def _under_prefixes(where: str, tensors: State, shapes: Shapes) -> list[Found]:
    covered: Counter[str] = Counter()
    alike: Counter[str] = Counter()
    for name, tensor in tensors.items():
        parts = name.split(".")
        for cut in range(len(parts)):
            rest = ".".join(parts[cut:])
            if rest in shapes:
                prefix = name.removesuffix(rest)
                covered[prefix] += 1
                alike[prefix] += tuple(tensor.shape) == shapes[rest]
    found = []
    for prefix, count in covered.items():
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if own.keys() >= shapes.keys():
            own = {name: tensor for name, tensor in own.items() if name in shapes or not re.match(PRETRAINING, name)}
        found.append(Found(own, where + prefix, count, alike[prefix], len(shapes)))
    return found


def _ranks(taken: str) -> list[int]:
    parts = (part for part in taken.split(".") if part)
    return [PREFERRED.index(part) if part in PREFERRED else len(PREFERRED) for part in parts]


def _label(taken: str) -> str:
    return f"{taken.removesuffix('.')!r}" if taken else "the names without a prefix"


def _same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
