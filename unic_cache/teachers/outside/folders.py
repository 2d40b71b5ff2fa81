"""A model's files, on the hub or in a folder: the hub's cache first, then a short reach, then a clear error."""

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.repocard import metadata_load

from unic_cache.errors import TeacherError
from unic_cache.teachers.hub import repo_file
from unic_cache.teachers.outside.names import CONFIGS, HUB, Outside

CARD = "README.md"
UNSTATED = "not stated by its card; see {}"


@dataclass(frozen=True)
class ModelFolder:
    """Where a model's files are. The revision is the commit of its config.json, once that is found."""

    name: str  # the teacher's, for messages
    scheme: str
    place: str  # ORG/NAME or a path
    revision: str | None = None

    @property
    def published(self) -> str:
        """Where people find it."""
        return self.place if self.scheme != HUB else f"{constants.ENDPOINT}/{self.place}"

    def find(self, *files: str) -> Path | str:
        """The local path of the first of these files that there is; or why there is none."""
        if self.scheme == HUB:
            return repo_file(self.place, files, self.revision)
        found = next((path for file in files if (path := Path(self.place, file)).is_file()), None)
        return found or f"{self.place} holds none of {', '.join(files)}"

    def file(self, *files: str) -> Path:
        """The local path of the first of these files. TeacherError if there is none."""
        found = self.find(*files)
        if isinstance(found, Path):
            return found
        if self.scheme != HUB:
            raise TeacherError(f"teacher {self.name}: {found}")
        raise TeacherError(
            f"teacher {self.name}: {files[0]} of {self.place} is not in {constants.HF_HUB_CACHE} and cannot be "
            f"fetched: {found}. Run once on a machine with internet and copy that cache folder here, or give a copy of "
            "the repository as local-dir:PATH"
        )

    def content(self, file: str) -> Any:
        """A JSON file's content. TeacherError if it is missing or no JSON object."""
        return read_json(self.file(file), self.name)

    def licence(self) -> str:
        """What the model's card states."""
        card = self.find(CARD)
        try:
            data = metadata_load(card) if isinstance(card, Path) else None
        except Exception:  # a card is prose; its head may hold anything
            data = None
        said = data if isinstance(data, dict) else {}
        stated = said.get("license")
        if stated is None or stated == "other":
            stated = said.get("license_name")
        names = stated if isinstance(stated, list) else [stated] if stated else []
        return " ".join(", ".join(map(str, names)).split()) or UNSTATED.format(self.published)


@functools.cache
def opened(outside: Outside) -> ModelFolder:
    """The folder of a hf-hub: or local-dir: name. TeacherError if no file in it describes it.

    One of the hub is pinned to a commit for the whole process: a branch may move between its config and its weights.
    """
    folder = ModelFolder(outside.name, outside.scheme, outside.place, outside.revision)
    # one after the other: with both in a repository, which of them is cached must not decide what the name means
    first = folder.find(CONFIGS[0])
    config = first if isinstance(first, Path) else folder.file(*CONFIGS)
    # the hub's cache is .../snapshots/COMMIT/config.json: the other files must be of that commit too
    return replace(folder, revision=config.parent.name) if folder.scheme == HUB else folder


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON object from a file. TeacherError if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TeacherError(f"teacher {name}: {path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise TeacherError(f"teacher {name}: {path} holds no JSON object")
    return content
