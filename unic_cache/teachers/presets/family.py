"""Families of teachers as data, and their rows as specs. Imports neither torch nor timm."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from unic_cache.teachers.spec import Rules, TeacherSpec
from unic_cache.token_kinds import CLS, PATCH

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of pixels in [0, 1]
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # pixels stay in [0, 1]

NORMED: tuple[Rules, Rules] = ({CLS: "norm-cls"}, {PATCH: "norm-patch"})
POOLED: tuple[Rules, Rules] = ({CLS: "pooled"}, {PATCH: "norm-patch"})
FC_NORMED: tuple[Rules, Rules] = ({CLS: "fc-norm-cls"}, {PATCH: "fc-norm-patch"})
NORMED_MAP: tuple[Rules, Rules] = ({CLS: "pooled"}, {PATCH: "norm-map"})
NECK: tuple[Rules, Rules] = ({}, {PATCH: "neck"})
PATCHES_ONLY: tuple[Rules, Rules] = ({}, {PATCH: "raw-patch"})
TWO_CLS: tuple[Rules, Rules] = ({CLS: "raw-cls", "cls-1": "raw-cls:1"}, {PATCH: "raw-patch"})
THREE_CLS: tuple[Rules, Rules] = ({**TWO_CLS[0], "cls-2": "raw-cls:2"}, {PATCH: "raw-patch"})

# By timm's name: models whose targets their structure does not tell, published without a classifier.
BY_NAME: tuple[tuple[str, tuple[Rules, Rules]], ...] = (
    (r"eva02_.*\.mim_[a-z0-9]+", FC_NORMED),  # the pre-trained final norm; timm calls it fc_norm
    (r"convnext_.*\.(dinov3|eupe)_.*", NORMED_MAP),
    (r"samvit_.*", NECK),
    (r"vit_pe_(spatial|lang)_.*", PATCHES_ONLY),
    (r"(naflex)?vit_.*_radio_v3.*", THREE_CLS),  # of CLIP, SigLIP 2 and DINOv2; SAM's fourth is untrained (RADIO#80)
    (r"(naflex)?vit_.*_radio_v4.*", TWO_CLS),  # of SigLIP 2 and DINOv3
)


class Row(NamedTuple):
    """One teacher of a family."""

    name: str
    arch: str  # timm's
    label: str  # of the network, for people
    size: int  # px
    stride: int  # px
    parameters: float  # millions, without a classifier
    width: int  # channels of its tokens
    changes: Mapping[str, Any] = {}  # fields of the spec that differ from the family's


@dataclass(frozen=True)
class Family:
    """What several teachers share."""

    title: str
    about: str  # how they were trained
    licence: str
    rules: tuple[Rules, Rules]
    colour: tuple[tuple[float, float, float], tuple[float, float, float]]  # mean and std
    rows: tuple[Row, ...]
    published: str = ""  # where, if not as timm's
    source: str = "timm"
    position_rule: str = "timm"
    sized: bool = True  # whether timm builds it for one input size
    unchecked: str = ""  # what only real weights can show


@dataclass(frozen=True)
class Preset:
    """A teacher by name, with what people want to know before they build it."""

    spec: TeacherSpec
    family: str
    parameters: float  # millions
    channels: Mapping[str, int] = field(default_factory=dict)  # by token kind
    unchecked: str = ""

    @property
    def tokens(self) -> int:
        """Grid tokens of a view."""
        return (self.spec.input_size // self.spec.stride) ** 2 if self.spec.grid_rules else 0


def rules_of(arch: str) -> tuple[Rules, Rules] | None:
    """(summary rules, grid rules) of a timm model whose structure does not tell them; None for all others."""
    return next((rules for pattern, rules in BY_NAME if re.fullmatch(pattern, arch)), None)


def presets(family: Family) -> Iterator[Preset]:
    """The rows of a family as presets."""
    for row in family.rows:
        summary_rules, grid_rules = family.rules
        fields: dict[str, Any] = {
            "name": row.name,
            "about": f"{family.title} {row.label}; {family.about}",
            "arch": row.arch,
            "arch_options": (("img_size", row.size),) if family.sized else (),
            "input_size": row.size,
            "stride": row.stride,
            "mean": family.colour[0],
            "std": family.colour[1],
            "summary_rules": summary_rules,
            "grid_rules": grid_rules,
            "key_layout": "timm",
            "position_rule": family.position_rule,
            "source": family.source,
            "published": family.published or f"timm, as {row.arch}",
            "licence": family.licence,
            **row.changes,
        }
        spec = TeacherSpec(**fields)
        channels = dict.fromkeys((*spec.summary_rules, *spec.grid_rules), row.width)
        yield Preset(spec, family.title, row.parameters, channels, family.unchecked)
