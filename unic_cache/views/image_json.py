"""Read images and classes from a JSON of images, annotations and categories, as of iNaturalist and COCO."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unic_cache.errors import ConfigError
from unic_cache.views.classes import Names
from unic_cache.views.csv_labels import Row
from unic_cache.views.index import twice
from unic_cache.views.left_out import shown

_LISTS = {"images": ("id", "file_name"), "annotations": ("image_id", "category_id"), "categories": ("id",)}


def read_json(file: Path) -> tuple[list[Row], Names]:
    """(a row per image, whose label is its category's number, or "" without one; the categories' names by number).

    Paths are relative to the JSON; a row's line is its place among the images, from 1. The names are empty unless every
    category has one of its own. ConfigError for another JSON, an id that two images or categories have, an image of
    several categories, annotations of other images alone, and a missing file.
    """
    data = _parsed(file)
    named = {"images": {(one["id"], str(one["file_name"])) for one in data["images"]}}
    named["categories"] = {(one["id"], str(one.get("name"))) for one in data["categories"]}
    for what, pairs in named.items():
        if repeated := twice(number for number, _ in pairs):
            raise ConfigError(f"{shown(str(file))}: two {what} have the id {repeated[0]!r}; give each one of its own")
    names = {int(one["id"]): str(one.get("name", "")) for one in data["categories"]}
    if min(names, default=0) < 0:
        raise ConfigError(f"{shown(str(file))}: category {min(names)} is negative; number categories from 0")
    category_of: dict[Any, int] = {}
    for one in data["annotations"]:
        image, category = one["image_id"], one["category_id"]
        if category not in names:
            raise ConfigError(f"{shown(str(file))}: image {image} has the category {category}, which is not listed")
        if category_of.setdefault(image, category) != category:
            raise ConfigError(
                f"{shown(str(file))}: image {image} has the categories {category_of[image]} and {category}, but an "
                "image has one class here; lists of objects are not classification"
            )
    if data["images"] and category_of and not category_of.keys() & {one["id"] for one in data["images"]}:
        image, listed = next(iter(category_of)), data["images"][0]["id"]
        raise ConfigError(
            f"{shown(str(file))}: no annotation is of a listed image: they name ids such as {image!r}, and the images "
            f"have ids such as {listed!r}; correct them, or leave the annotations empty for images without labels"
        )
    rows = [_row(file, line, one, category_of) for line, one in enumerate(data["images"], 1)]
    paths = {row.path: row.line for row in rows}
    if len(paths) < len(rows):
        again = next(row for row in rows if paths[row.path] != row.line)
        raise ConfigError(f"{shown(str(file))}: {shown(str(again.path))} is listed twice; keep one")
    return rows, names if len(set(names.values()) - {""}) == len(names) else {}


def _row(file: Path, line: int, image: Mapping[str, Any], category_of: Mapping[Any, int]) -> Row:
    path = file.parent / str(image["file_name"])
    if not path.is_file():
        raise ConfigError(
            f"{shown(str(file))}: no file at {shown(str(image['file_name']))}; paths are relative to the JSON, so put "
            "it beside the folder that they begin with"
        )
    return Row(file, line, path, str(category_of.get(image["id"], "")))


def _parsed(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{shown(str(file))} is not JSON: {error}") from error
    for name, fields in _LISTS.items():
        parts = data.get(name) if isinstance(data, dict) else None
        if not isinstance(parts, list) or not all(isinstance(one, dict) and set(fields) <= set(one) for one in parts):
            raise ConfigError(
                f"{shown(str(file))}: no {name!r} with {' and '.join(fields)} each; a JSON of IMAGES lists images, "
                "annotations and categories, as iNaturalist's train2018.json"
            )
    if not all(type(one["id"]) is int for one in data["categories"]):
        raise ConfigError(f"{shown(str(file))}: a category's id is not a whole number")
    if not all(isinstance(one["id"], int | float | str) for one in data["images"]):
        raise ConfigError(f"{shown(str(file))}: an image's id is neither a number nor a text")
    if not all(isinstance(one["image_id"], int | str) for one in data["annotations"]):
        raise ConfigError(f"{shown(str(file))}: an annotation's image_id is neither a number nor a text")
    return dict(data)
