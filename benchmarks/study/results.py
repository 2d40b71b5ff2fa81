"""results.jsonl: one line per finished run, which is the run's commit."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unic_cache.errors import ConfigError
from unic_cache.files.local import LocalFolder

RESULTS = Path(__file__).with_name("results.jsonl")


@dataclass(frozen=True)
class Line:
    """What a run was, and what came of it."""

    run: str
    seed: int
    settings: Mapping[str, Any]
    figures: Mapping[str, Any]
    seconds: float

    @property
    def key(self) -> tuple[str, str, int]:
        """Scale, name and seed: there is one line of each."""
        return str(self.settings["scale"]), self.run, self.seed


def read_lines(path: Path) -> list[Line]:
    """The lines of a file, none if it is absent. ConfigError for what is no line of a run, or twice that of one."""
    lines: list[Line] = []
    fields = {field.name for field in dataclasses.fields(Line)}
    for number, text in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
        try:
            data = json.loads(text)
            if set(data) != fields:
                raise ValueError(f"it has the keys {', '.join(data)}, not {', '.join(sorted(fields))}")
            lines.append(Line(**data))
            known = lines[-1].key
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path}, line {number}: not a run's result ({error}); restore the file") from error
        if known in [line.key for line in lines[:-1]]:
            raise ConfigError(
                f"{path}, line {number}: {lines[-1].run} of seed {lines[-1].seed} again; keep one of both"
            )
    return lines


def append_line(path: Path, line: Line) -> None:
    """Add a line; the file is replaced whole, so a crash leaves it without the line or with all of it."""
    before = path.read_text() if path.exists() else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    LocalFolder(path.parent).replace(
        path.name, f"{before}{json.dumps(dataclasses.asdict(line), sort_keys=True)}\n".encode()
    )


def finished(lines: Sequence[Line], key: tuple[str, str, int], settings: Mapping[str, Any]) -> Line | None:
    """The line of a run, None if it is still to be done. ConfigError if it was done with other settings."""
    line = next((one for one in lines if one.key == key), None)
    if line is None:
        return None
    now = json.loads(json.dumps(settings))
    if line.settings != now:
        names = [name for name in {**line.settings, **now} if line.settings.get(name) != now.get(name)]
        _, run, seed = key
        raise ConfigError(
            f"results.jsonl has {run} of seed {seed} with other settings ({', '.join(names)}): "
            f"{line.settings.get(names[0])} then, {now.get(names[0])} now; remove its line to run it again, or write "
            "to another file with --results"
        )
    return line
