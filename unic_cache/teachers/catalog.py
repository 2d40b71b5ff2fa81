"""Teachers by name: those that the project knows, any timm model as `timm:NAME`, and teachers outside timm.

Behind a name, `@SIZE` gives the same teacher at another input size in px, and `+cls=RULE,patch=RULE` other targets by
the rules of `token_rules.py`; `none` leaves a kind out. So `dinov2-b@336+patch=block:9` has CLS as ever, and patches of
block 9. The names are in `presets/`, the forms of those outside timm in `outside/names.py`. Nothing here imports torch
or timm before a name is resolved that is not the catalog's, so that listing the teachers is quick.
"""

import dataclasses
import difflib
import re

from unic_cache.config.bounds import LARGEST_IMAGE
from unic_cache.errors import TeacherError
from unic_cache.teachers.outside.names import is_outside
from unic_cache.teachers.presets.agglomerated import AGGLOMERATED
from unic_cache.teachers.presets.clip import CLIPS
from unic_cache.teachers.presets.family import Preset, presets
from unic_cache.teachers.presets.language import LANGUAGE
from unic_cache.teachers.presets.paper import PAPER
from unic_cache.teachers.presets.vision import VISION
from unic_cache.teachers.spec import NONE, TeacherSpec
from unic_cache.token_kinds import PATCH

__all__ = ["CATALOG", "PRESETS", "TeacherSpec", "base_name", "no_weights", "resolve"]

FAMILIES = (*AGGLOMERATED[:1], *VISION, *CLIPS, *LANGUAGE, *AGGLOMERATED[1:])
PRESETS: dict[str, Preset] = {
    one.spec.name: one for one in (*PAPER, *(preset for family in FAMILIES for preset in presets(family)))
}
CATALOG: dict[str, TeacherSpec] = {name: preset.spec for name, preset in PRESETS.items()}
STRIDES = {"stride16-map": 16, "norm-map": 32}  # px; of ConvNeXt's last map
KIND = r"cls(-[a-z0-9]+)*|patch"
SHOWN = 6  # names in an error

PUBLISHED = {  # sha256 of the published tensors, if known: the same tensors in another file are the same weights
    "efficientnet-lite0": "3397d49c531fce5bfef9b6f0fff47d04d12f09dc71cd27bb04946ab00ff8f16e",
    "vit-s-saliency": "f0a0328e68070d2387598e73dff9c4a9e74474c4113ae4c23999b7ebaa91eae2",
    "hed-edges": "6beb5c1087d2185cd92e2501b7a838ca5516185e30ff8631834986edc138da64",
}


def resolve(name: str) -> TeacherSpec:
    """The spec of a teacher in CATALOG, of `timm:NAME` or outside timm, with `@SIZE` and `+KIND=RULE,...` or without.

    Touches no weights; `py:` calls the factory, `hf-hub:` reads the model's description. TeacherError for an unknown
    teacher (the message names close ones), a size that does not suit it, or rules that are unknown or do not go
    together.
    """
    plain, plus, rules = name.partition("+")
    base, at, size = plain.partition("@")
    if at and not size.isdecimal():
        raise TeacherError(f"teacher {name!r}: after '@' comes the input size in px, as in {base}@224")
    if at and not 1 <= int(size) <= LARGEST_IMAGE:
        raise TeacherError(f"teacher {name!r}: an input of {size} px is out of bounds; choose 1 to {LARGEST_IMAGE}")
    if base.startswith("timm:"):
        from unic_cache.teachers.derive import derive

        spec = derive(base.removeprefix("timm:"), int(size) if at else None)
    elif is_outside(base):
        from unic_cache.teachers.outside.opening import outside_spec

        spec = outside_spec(base, int(size) if at else None)
    elif base not in CATALOG:
        raise TeacherError(_unknown(base))
    else:
        spec = CATALOG[base].resized(int(size)) if at else CATALOG[base]
    return _with_rules(spec, name, rules) if plus else spec


def _with_rules(spec: TeacherSpec, name: str, text: str) -> TeacherSpec:
    """The spec with the rules of 'cls=RULE,patch=RULE', and named after them unless they are its own.

    Any CLS rule replaces all class tokens of the teacher's own.
    """
    given = [part.partition("=") for part in text.split(",")]
    kinds = [kind for kind, _, _ in given]
    if not all(re.fullmatch(KIND, kind) and equals and rule for kind, equals, rule in given):
        raise TeacherError(
            f"teacher {name!r}: after '+' come rules, as in {name.partition('+')[0]}+cls=none,patch=block:8; "
            f"a size comes before them (NAME@SIZE+...), and the kinds are cls, cls-1, ... and {PATCH}"
        )
    if len(set(kinds)) < len(kinds):
        raise TeacherError(f"teacher {name!r}: a kind has two rules; give one")
    rules = {kind: rule for kind, _, rule in sorted(given)}
    wanted = {kind: rule for kind, rule in rules.items() if rule != NONE}
    summary = {kind: rule for kind, rule in wanted.items() if kind != PATCH}
    summary = summary if rules.keys() - {PATCH} else dict(spec.summary_rules)
    grid = {kind: rule for kind, rule in wanted.items() if kind == PATCH} if PATCH in rules else dict(spec.grid_rules)
    if (summary, grid) == (spec.summary_rules, spec.grid_rules):
        return spec
    return dataclasses.replace(
        spec,
        name=f"{spec.name}+{','.join(map('='.join, rules.items()))}",
        summary_rules=summary,
        grid_rules=grid,
        stride=STRIDES.get(grid.get(PATCH, ""), spec.stride),
    )


def _unknown(name: str) -> str:
    close = [known for known in CATALOG if name and known.startswith(name)]
    close = (close or difflib.get_close_matches(name, CATALOG, n=3, cutoff=0.5))[:SHOWN]
    hint = f"did you mean {' or '.join(close)}?" if close else "`unic-cache teachers` lists them all."
    return (
        f"no teacher is called {name!r}; {hint} Any timm model is timm:NAME, as in timm:vit_small_patch16_224; others "
        "are hf-hub:ORG/NAME, local-dir:PATH, open_clip:ARCH/TAG and py:package.module:factory"
    )


def base_name(name: str) -> str:
    """A teacher's name without size and rules."""
    return name.partition("+")[0].partition("@")[0]


def no_weights(spec: TeacherSpec) -> TeacherError:
    """The error for a teacher without a weights file whose weights only its authors publish."""
    return TeacherError(
        f"teacher {spec.name}: timm has no weights for it. Its authors publish them at {spec.published}; "
        f"fetch the file from there and pass --weights {spec.name}=FILE"
    )
