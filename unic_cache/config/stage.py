"""What all configs share: their checks, and a JSON round trip."""

import dataclasses
import json
from typing import Any, ClassVar, Self

from unic_cache.config.bounds import check_choice, check_numbers
from unic_cache.config.devices import check_device
from unic_cache.errors import ConfigError
from unic_cache.files.paths import check_paths


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command's settings, checked when made: numbers in bounds, known choices, paths spelled as they were meant."""

    stage: ClassVar[str]  # the command: 'shard' for ShardConfig

    def __init_subclass__(cls) -> None:
        cls.stage = cls.__name__.removesuffix("Config").lower()

    def __post_init__(self) -> None:
        check_numbers(self)
        check_paths(self)
        check_device(self.stage, getattr(self, "device", "auto"), getattr(self, "ray", None))
        for field in dataclasses.fields(self):
            value, about = getattr(self, field.name), field.metadata.get("about")
            if about and about.choices and value is not None:
                for one in value if isinstance(value, tuple) else (value,):
                    check_choice(field.name.replace("_", "-"), one, about.choices)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` returns an equal config."""
        return {"stage": self.stage, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The config that `to_json` described. ConfigError if it is another stage's or has unknown fields."""
        unknown = sorted(set(data) - {field.name for field in dataclasses.fields(cls)} - {"stage"})
        if data.get("stage") != cls.stage or unknown:
            raise ConfigError(
                f"not a config of `unic-cache {cls.stage}`: {json.dumps(data)[:200]} (unknown: {unknown})"
            )
        return cls(**{name: _frozen(value) for name, value in data.items() if name != "stage"})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(part) for part in value) if isinstance(value, list) else value
