"""Whether timm can know a model's name, by the text of its files: importing timm and torch takes seconds.

A name that timm's files never mention is not a model of timm. One that they do may be something else; timm decides.
"""

import difflib
import functools
import importlib.util
import re
from pathlib import Path

ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:")  # prefixes of models outside timm


def close_names(name: str) -> list[str] | None:
    """Up to three names of timm's models close to `name`, if timm surely lacks it; else None."""
    architecture = name.partition(".")[0]
    if name.startswith(ELSEWHERE) or not re.fullmatch(r"\w+", architecture):
        return None
    texts = _texts()
    if not texts or any(re.search(rf"\b{architecture}\b", text) for text in texts):
        return None
    models = {model for text in texts for model in re.findall(r"^def (\w+)\(pretrained", text, re.MULTILINE)}
    return difflib.get_close_matches(architecture, sorted(models), n=3)


@functools.cache
def _texts() -> tuple[str, ...]:
    """The source files of timm's models; none without timm."""
    found = importlib.util.find_spec("timm")
    folders = list(found.submodule_search_locations or ()) if found else []
    files = [file for folder in folders for file in sorted(Path(folder, "models").glob("*.py"))]
    return tuple(file.read_text(encoding="utf-8") for file in files)
