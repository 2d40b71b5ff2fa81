"""What a teacher is, as pure data: everything that decides its answer, saved as JSON beside the features it gave.

A spec is written down in the catalogue (or derived from timm), and loading completes it: widths, grid and checksums.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from unic_cache.errors import TeacherError

Option = bool | int | float | str

CLS_RULES = ("norm-cls", "fc-norm-mean", "pooled", "block", "none")
PATCH_RULES = ("norm-patch", "raw-patch", "block", "stride16-map", "none")
POSITION_RULES = ("timm", "bicubic", "bicubic-scale")


@dataclass(frozen=True)
class TeacherSpec:
    """A frozen network, its weights, and which of its activations are the targets.

    TeacherError where a rule is unknown or the input size is no multiple of the stride.
    """

    name: str  # as the user says it, with @SIZE where that is not the default
    about: str  # one line for the list of teachers
    arch: str  # timm's model name
    arch_options: tuple[tuple[str, Option], ...]  # what timm.create_model gets besides
    input_size: int  # pixels, height and width
    stride: int  # pixels from one patch token to the next, both ways
    mean: tuple[float, float, float]  # of pixels in [0, 1]
    std: tuple[float, float, float]
    cls_rule: str  # see tokens.py
    patch_rule: str
    key_layout: str  # see weights.py
    position_rule: str  # how position embeddings reach another grid; see positions.py
    source: str  # "timm", "file", or "package:PACKAGE/FILE"
    published: str  # where the authors publish the weights
    licence: str
    cls_dim: int | None = None  # channels; from here on, what loading finds
    patch_dim: int | None = None
    grid: tuple[int, int] | None = None  # patch tokens, rows and columns
    weights_sha256: str | None = None  # of the tensors in timm's keys, at their own grid
    weights_file_sha256: str | None = None  # of the file that they came from

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("CLS rule", self.cls_rule.partition(":")[0], CLS_RULES),
            ("patch rule", self.patch_rule.partition(":")[0], PATCH_RULES),
            ("position rule", self.position_rule, POSITION_RULES),
        ):
            if value not in known:
                raise TeacherError(f"teacher {self.name}: {kind} {value!r} is unknown; choose from {', '.join(known)}")
        if self.input_size < self.stride or self.input_size % self.stride:
            below = self.input_size // self.stride * self.stride
            nearest = " or ".join(str(size) for size in (below, below + self.stride) if size)
            raise TeacherError(
                f"teacher {self.name}: an input of {self.input_size} px is no multiple of the patch size "
                f"{self.stride} px; the nearest that are: {nearest} (say {self.name.partition('@')[0]}@SIZE)"
            )

    def resized(self, size: int) -> Self:
        """The same teacher at inputs of `size` px, named NAME@SIZE; unchanged where that is its size already."""
        if size == self.input_size:
            return self
        options = tuple((key, size if key == "img_size" else value) for key, value in self.arch_options)
        return dataclasses.replace(self, name=f"{self.name}@{size}", input_size=size, arch_options=options)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` gives an equal spec back."""
        data = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        return {**data, "arch_options": dict(self.arch_options)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The spec that `to_json` described. TeacherError where fields are unknown or absent."""
        fields = {field.name for field in dataclasses.fields(cls)}
        needed = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        unknown, absent = sorted(set(data) - fields), sorted(needed - set(data))
        if unknown or absent:
            raise TeacherError(f"not a teacher's spec: unknown fields {unknown}, absent fields {absent}")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**{**values, "arch_options": tuple(data["arch_options"].items())})
