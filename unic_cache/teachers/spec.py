"""What a teacher is, as pure data: everything that decides its output, saved as JSON beside the features.

The catalogue lists specs, or timm's description gives them; loading adds checksums and token kinds.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from unic_cache.errors import TeacherError
from unic_cache.token_kinds import CLS, PATCH, Kinds, kinds_from_json, kinds_to_json

Option = bool | int | float | str | tuple[Any, ...]
Rules = Mapping[str, str]  # token kind -> rule of teachers/token_rules.py

SUMMARY_RULES = ("norm-cls", "raw-cls", "fc-norm-cls", "fc-norm-mean", "grid-mean", "pooled", "block", "raw-block")
GRID_RULES = ("norm-patch", "raw-patch", "fc-norm-patch", "stride16-map", "norm-map", "neck", "block", "raw-block")
MAP_RULES = ("stride16-map", "norm-map", "neck")  # of models whose features are maps
OF_MAPS = ("pooled", "grid-mean")  # summary rules of such models
NUMBERED = {"norm-cls": False, "raw-cls": False, "block": True, "raw-block": True}  # rule:number, and whether it must
POSITION_RULES = ("timm", "bicubic", "bicubic-scale")
OWN = "own"  # where the network itself decides: positions of transformers' models, everything of a py: module
TIMM, TRANSFORMERS, OPEN_CLIP, PY = "timm", "transformers", "open_clip", "py"  # libraries
RULES = {  # library -> its CLS rules, patch rules and position rules
    TIMM: (SUMMARY_RULES, GRID_RULES, POSITION_RULES),
    OPEN_CLIP: (SUMMARY_RULES, GRID_RULES, POSITION_RULES),
    TRANSFORMERS: (
        ("norm-cls", "raw-cls", "grid-mean", "pooled", "block", "raw-block"),
        ("norm-patch", "raw-patch", "block", "raw-block"),
        (OWN,),
    ),
    PY: ((OWN, "grid-mean"), (OWN,), (OWN,)),
}
NONE = "none"  # in JSON, the rule of a kind that the teacher lacks
UNLOADED = kinds_to_json({})
KEYS = {"cls_rule": ("summary_rules", CLS), "patch_rule": ("grid_rules", PATCH)}  # JSON keys of these kinds' own


@dataclass(frozen=True)
class TeacherSpec:
    """A frozen network, its weights, and which of its activations are the targets.

    TeacherError for an unknown rule, rules that need different layers, or an input that the stride does not divide.
    """

    name: str  # as the user gives it, with @SIZE unless that is the default
    about: str  # one line for the list of teachers
    arch: str  # timm's model name; of another library LIBRARY:NAME
    arch_options: tuple[tuple[str, Option], ...]  # more arguments of timm.create_model
    input_size: int  # pixels, height and width
    stride: int  # pixels from one grid token to the next, both ways
    mean: tuple[float, float, float]  # of pixels in [0, 1]
    std: tuple[float, float, float]
    summary_rules: Rules
    grid_rules: Rules
    key_layout: str  # see weights.py
    position_rule: str  # how position embeddings reach another grid; see positions.py
    source: str  # "timm", "file", "package:PACKAGE/FILE", or where a teacher outside timm is, as in "hf-hub:ORG/NAME"
    published: str  # where the authors publish the weights
    licence: str
    kinds: Kinds = field(default_factory=dict)  # from here on, found when loading
    weights_sha256: str | None = None  # of the tensors under timm's names, at their own grid
    weights_file_sha256: str | None = None  # of the file that holds them
    version: str | None = None  # of what decides the output beside weights and spec; in JSON only where there is one

    def __post_init__(self) -> None:
        if self.library not in RULES:
            raise TeacherError(
                f"teacher {self.name}: library {self.library!r} is unknown; this release has {list(RULES)}"
            )
        summaries, patches, places = RULES[self.library]
        for what, values, known in (
            ("CLS rule", self.summary_rules.values(), summaries),
            ("patch rule", self.grid_rules.values(), patches),
            ("position rule", [self.position_rule], places),
        ):
            for value in values:
                self._check_rule(what, value, known)
        grids = set(self.grid_rules.values())
        every = {*grids, *(rule for rule in self.summary_rules.values() if rule not in OF_MAPS)}
        if grids & set(MAP_RULES) and len(every) > 1:
            raise TeacherError(
                f"teacher {self.name}: rules {', '.join(sorted(every))} do not go together: beside a map there are "
                f"only the summaries {', '.join(OF_MAPS)}"
            )
        if not (self.summary_rules or self.grid_rules):
            raise TeacherError(f"teacher {self.name}: without CLS and patches it gives nothing; choose one")
        if self.input_size < self.stride or self.input_size % self.stride:
            below = self.input_size // self.stride * self.stride
            nearest = " or ".join(str(size) for size in (below, below + self.stride) if size)
            raise TeacherError(
                f"teacher {self.name}: an input of {self.input_size} px is no multiple of the patch size "
                f"{self.stride} px; the nearest that are: {nearest} (say {self.name.partition('@')[0]}@SIZE)"
            )

    def _check_rule(self, what: str, rule: str, known: tuple[str, ...]) -> None:
        name, colon, number = rule.partition(":")
        if name not in known:
            raise TeacherError(f"teacher {self.name}: {what} {name!r} is unknown; choose from {', '.join(known)}")
        if (bool(colon) and not (name in NUMBERED and number.isdecimal())) or NUMBERED.get(name, False) > bool(colon):
            form = f"{name}:NUMBER, as in {name}:8" if name in NUMBERED else name
            raise TeacherError(f"teacher {self.name}: {what} {rule!r} must be {form}")

    @property
    def library(self) -> str:
        """What runs the network: TIMM, TRANSFORMERS, OPEN_CLIP or PY."""
        library, colon, _ = self.arch.partition(":")
        return library if colon else TIMM

    @property
    def headless(self) -> bool:
        """Whether VGG is built without its head's hidden layers, 103 of 118 million weights: no rule reads them."""
        return self.arch.startswith("vgg") and "pooled" not in self.summary_rules.values()

    def resized(self, size: int) -> Self:
        """The same teacher at inputs of `size` px, named NAME@SIZE; unchanged if that is its size."""
        if size == self.input_size:
            return self
        options = tuple((key, size if key == "img_size" else value) for key, value in self.arch_options)
        return dataclasses.replace(self, name=f"{self.name}@{size}", input_size=size, arch_options=options)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` gives an equal spec back."""
        data = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        del data["kinds"]
        if self.version is None:
            del data["version"]
        data |= {"arch_options": dict(self.arch_options), **kinds_to_json(self.kinds)}
        for key, (rules, kind) in KEYS.items():
            more = dict(data.pop(rules))
            data[key] = more.pop(kind, NONE)
            data |= {rules: more} if more else {}
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The spec that `to_json` described. TeacherError for unknown or absent fields."""
        fields = {one.name: one.default is one.default_factory for one in dataclasses.fields(cls)}  # True: no default
        needed = {name for name, without in fields.items() if without} - {"summary_rules", "grid_rules"} | KEYS.keys()
        unknown, absent = sorted(data.keys() - fields - needed - UNLOADED.keys()), sorted(needed - data.keys())
        if unknown or absent:
            raise TeacherError(f"not a teacher's spec: unknown fields {unknown}, absent fields {absent}")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items() if key in fields
        }
        for key, (rules, kind) in KEYS.items():
            own = {} if data[key] == NONE else {kind: data[key]}
            values[rules] = {**own, **data.get(rules, {})}
        kinds = kinds_from_json({**UNLOADED, **data})
        options = tuple((key, frozen(value)) for key, value in data["arch_options"].items())
        return cls(**{**values, "kinds": kinds, "arch_options": options})


def frozen(value: Any) -> Any:
    """JSON's value of an option, with lists as tuples."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value
