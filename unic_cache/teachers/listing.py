"""The teachers known by name, as text: grouped by family, filtered by words, with size and licence."""

import difflib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from unic_cache.errors import TeacherError
from unic_cache.teachers.catalog import PRESETS
from unic_cache.teachers.presets.family import Preset
from unic_cache.teachers.spec import NONE

DETAILED = 3  # teachers, up to which each is told in full
HINT = (
    "NAME@SIZE sets the input size in px, NAME+cls=RULE,patch=RULE the targets (none: without); timm:NAME is any timm "
    "model, as in timm:resnet50; hf-hub:ORG/NAME, local-dir:PATH, open_clip:ARCH/TAG and py:package.module:factory are "
    "teachers outside timm (docs/OWN_TEACHERS.md). More words list fewer teachers and more of each."
)


def matching(words: Sequence[str]) -> list[Preset]:
    """The presets whose name, family, description, network and licence hold every word. TeacherError if none do.

    A word that is a name means that teacher alone.
    """
    exact = [PRESETS[word] for word in words if word in PRESETS]
    if exact and len(exact) == len(words):
        return exact
    found = [one for one in PRESETS.values() if all(word.lower() in _text_of(one) for word in words)]
    if not found:
        close = difflib.get_close_matches(" ".join(words), PRESETS, n=5, cutoff=0.4)
        hint = f"; close names: {', '.join(close)}" if close else ""
        raise TeacherError(f"no teacher has {' and '.join(map(repr, words))} in its name or description{hint}")
    return found


def lines(found: Sequence[Preset]) -> Iterator[str]:
    """The listing: a heading for each family, a line for each teacher, and all details where there are few."""
    width = max(len(one.spec.name) for one in found) + 2
    for family, ones in itertools.groupby(found, lambda one: one.family):
        yield family
        for one in ones:
            yield f"  {one.spec.name:<{width}}{size_text(one)}  {one.spec.licence}"
            if len(found) <= DETAILED:
                yield from (f"      {line}" for line in details(one))
    yield HINT


def details(one: Preset) -> Iterator[str]:
    """Network, targets, positions, weights and what is unchecked."""
    spec = one.spec
    yield spec.about
    yield f"network {spec.arch}, mean/std {_numbers(spec.mean)}/{_numbers(spec.std)}, positions {spec.position_rule}"
    yield f"targets: {rules_text(one)}"
    needs = "a file (--weights)" if spec.source == "file" else spec.source.partition(":")[0]
    yield f"weights: {needs}; published: {spec.published}"
    if one.unchecked:
        yield f"not checked on the real weights: {one.unchecked}"


def size_text(one: Preset) -> str:
    """Parameters, input size, tokens and channels, in columns."""
    return (
        f"{one.parameters:>7,.1f} M  {one.spec.input_size:>4} px  {one.tokens:>5,} tokens of "
        f"{one.channels.get('patch', 0):>4,}  "
        f"{_summaries(one):<14}"
    )


def rules_text(one: Preset) -> str:
    """Every kind with its rule; CLS without one is none."""
    rules = {**({} if one.spec.summary_rules else {"cls": NONE}), **one.spec.summary_rules, **one.spec.grid_rules}
    return ", ".join(f"{kind} {rule}" for kind, rule in rules.items())


def to_json(one: Preset) -> dict[str, Any]:
    """The spec with the preset's own facts."""
    facts = {"family": one.family, "parameters_millions": one.parameters, "tokens": one.tokens}
    return {**one.spec.to_json(), **facts, "channels": dict(one.channels), "unchecked": one.unchecked}


def _summaries(one: Preset) -> str:
    widths = [one.channels[kind] for kind in one.spec.summary_rules]
    return "no CLS" if not widths else f"CLS {widths[0]:,}" if len(widths) == 1 else f"{len(widths)} CLS {widths[0]:,}"


def _text_of(one: Preset) -> str:
    spec = one.spec
    return f"{spec.name} {one.family} {spec.about} {spec.arch} {spec.licence}".lower()


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{value:.3g}" for value in values)
