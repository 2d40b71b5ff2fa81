"""How a stage's settings are saved: as JSON, and back."""

import dataclasses
import json
from typing import Any, ClassVar, Self

from unic_cache.bounds import check_numbers
from unic_cache.errors import ConfigError
from unic_cache.files.paths import check_paths


class Saved:
    """What all stages' dataclasses share: numbers within bounds, paths as they were meant, and a JSON round trip."""

    stage: ClassVar[str]

    def __post_init__(self) -> None:
        check_numbers(self)
        check_paths(self)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` gives an equal config back."""
        return {"stage": self.stage, **dataclasses.asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The config that `to_json` described. ConfigError on another stage or unknown fields."""
        fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(data) - fields - {"stage"})
        if data.get("stage") != cls.stage or unknown:
            raise ConfigError(
                f"not a config of `unic-cache {cls.stage}`: {json.dumps(data)[:200]} (unknown: {unknown})"
            )
        return cls(**{name: _frozen(value) for name, value in data.items() if name != "stage"})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(part) for part in value) if isinstance(value, list) else value
