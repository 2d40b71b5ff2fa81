"""Report where a cache's features or a student come from: weights, licences, preprocessing, library versions."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from pipelines.command.caches import opened
from pipelines.command.printing import results
from unic_cache.config import InspectConfig
from unic_cache.inputs import RULE
from unic_cache.student.export import encoder_file, licences_of, load_encoder

SOURCE = ("about", "source", "published", "licence", "weights_file_sha256")
RULES = ("arch", "arch_options", "input_size", "mean", "std", "cls_rule", "patch_rule", "position_rule")
MORE_RULES = ("summary_rules", "grid_rules")  # of a teacher with several class tokens, or several grids
MADE_WITH = ("codec", "dtype", "device", "batch_size", "augment", "versions")


def run(config: InspectConfig) -> dict[str, Any]:
    """JSON-ready: of an exported student (a folder that holds one, or its file), or else of the cache that is there."""
    return of_student(config.cache) if is_student(config.cache) else of_cache(config.cache)


def is_student(path: str) -> bool:
    """Whether `path` is an exported student: a folder that holds one, or its file."""
    return encoder_file(path).is_file()


def of_cache(path: str) -> dict[str, Any]:
    """{"cache", "teachers": {name: {"weights_sha256", "preprocessing", ...}}, "kept_views": what made the pixels}."""
    cache = opened(path)
    report: dict[str, Any] = {"cache": path, "teachers": {}}
    for name, teacher in cache.teachers.items():
        spec = teacher.spec
        report["teachers"][name] = {
            **{key: spec["teacher"][key] for key in ("weights_sha256", "version") if key in spec["teacher"]},
            **{key: spec["provenance"].get(key) for key in SOURCE},
            **{key: spec["provenance"][key] for key in ("recoded_from",) if key in spec["provenance"]},
            "preprocessing": {
                "rule": RULE,
                **{key: spec["teacher"].get(key) for key in RULES},
                **{key: spec["teacher"][key] for key in MORE_RULES if key in spec["teacher"]},
            },
            **{key: spec.get(key) for key in MADE_WITH},
        }
    if cache.pixels is not None:
        report["kept_views"] = {key: cache.pixels.spec.get(key) for key in ("size", "augment", "versions")}
    return report


def of_student(path: str) -> dict[str, Any]:
    """{"encoder", "student", "inherits": {licence: teachers}, and what `distill` wrote into the file's header}."""
    _, spec, provenance = load_encoder(path)
    licences: dict[str, list[str]] = {}
    for name, licence in licences_of(provenance).items():
        licences.setdefault(licence, []).append(name)
    return {"encoder": path, "student": spec.to_json(), "inherits": licences, **provenance}


def show(report: Mapping[str, Any]) -> None:
    """Print the report, one line per fact."""
    console = results()
    console.soft_wrap = True
    for key, value in report.items():
        if key == "teachers":
            for name, facts in value.items():
                console.print(f"\n{name}", style="bold")
                _lines(console, facts, "  ")
        else:
            _lines(console, {key: value}, "")


def _lines(console: Console, facts: Mapping[str, Any], indent: str) -> None:
    for key, value in facts.items():
        if isinstance(value, Mapping) and value:
            console.print(f"{indent}{key}")
            _lines(console, value, f"{indent}  ")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            console.print(f"{indent}{key}: {text}")
