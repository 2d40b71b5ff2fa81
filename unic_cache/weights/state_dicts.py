"""Which tensors of a checkpoint are a network's: found by their names, wherever they lie, and never by their order.

A checkpoint holds mappings within mappings, and in each of them names with prefixes:

    {"teacher": {"module.backbone.blocks.0.norm1.weight": ...}, "student": {...}, "optimizer": {...}}

A candidate is a mapping and a prefix under which names of the network stand. The one that has most of them is taken,
then the one with most shapes right, then by what it is called: see PREFERRED. Which one was taken is logged where there
were others.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from unic_cache.errors import WeightsError

State: TypeAlias = dict[str, torch.Tensor]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

PREFERRED = ("state_dict", "model", "teacher")  # before others that fit as well, as authors' files have them
DEEPEST = 4  # mappings within mappings
ENOUGH = 0.5  # of a network's names, for a candidate to be meant
SHOWN = 3  # names in a message

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """The tensors that stand for a network in a checkpoint, under its names as far as these are known."""

    tensors: State
    taken: str  # mappings and prefix, such as 'teacher.backbone.'; '' for the whole file
    covered: int  # of the network's names
    alike: int  # of them, those of the network's shape
    size: int  # of the network, in names

    @property
    def meant(self) -> bool:
        """Whether enough names are there to call it this network's."""
        return self.covered > ENOUGH * self.size

    def order(self) -> tuple[Any, ...]:
        """The best candidate has the least; equals cannot be told apart."""
        parts = [part for part in self.taken.split(".") if part]
        return -self.covered, -self.alike, [_rank(part) for part in parts]


def mappings(content: Any) -> Iterator[tuple[str, State]]:
    """(its path, such as 'model.', and its own tensors) of every mapping in a checkpoint that holds tensors."""

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
    """The tensors of the network that has `shapes`; `rename` takes the authors' names to the network's.

    WeightsError where the file holds no named tensors, or several sets of them that cannot be told apart.
    """
    found: list[Found] = []
    groups = [
        (where, {rename(name): tensor for name, tensor in tensors.items()}) for where, tensors in mappings(content)
    ]
    if not groups:
        raise WeightsError(f"weights file {path}: no tensors in it, neither flat nor under {', '.join(PREFERRED)}")
    for where, tensors in groups:
        found += _under_prefixes(where, tensors, shapes)
    found.sort(key=Found.order)
    if not found or not found[0].meant:
        where, tensors = min(groups, key=lambda group: [_rank(part) for part in group[0].split(".") if part])
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


def without_shared_prefix(tensors: State) -> State:
    """The names without the parts that all of them begin with, such as `module.` of data parallelism."""
    while tensors:
        first = next(iter(tensors)).partition(".")[0] + "."
        if not all(name.startswith(first) for name in tensors):
            break
        tensors = {name.removeprefix(first): tensor for name, tensor in tensors.items()}
    return tensors


def first_names(tensors: Mapping[str, Any]) -> str:
    """The first names of a file, for a message."""
    more = f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else ""
    return f"{', '.join(list(tensors)[:SHOWN])}{more}"


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
    return [
        Found(
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)},
            where + prefix,
            count,
            alike[prefix],
            len(shapes),
        )
        for prefix, count in covered.items()
    ]


def _rank(part: str) -> int:
    return PREFERRED.index(part) if part in PREFERRED else len(PREFERRED)


def _label(taken: str) -> str:
    return f"{taken.removesuffix('.')!r}" if taken else "the names without a prefix"


def _same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
