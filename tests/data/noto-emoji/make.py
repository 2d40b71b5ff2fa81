"""Make the demo's shards anew: `python make.py PACKAGE`, where PACKAGE is the unpacked emoji-datasource-google 16.0.0.

`alpha.png` beside the shards has the transparency that is lost in them: 64 rows per emoji, sorted by the keys of both
splits together.

Of each category at most 90 base emoji, evenly spaced over `sort_order`; of those, positions 2, 7, 12, ... are held out.
"""

import json
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from PIL import Image

from pipelines.shard import run
from unic_cache.config import ShardConfig

PER_CATEGORY = 90
PER_SHARD = 100
HERE = Path(__file__).parent


def choose(package: Path) -> dict[str, list[dict[str, str]]]:
    """{category: its chosen base emoji, in order}; the list's top level holds no skin-tone variants."""
    found = defaultdict(list)
    for emoji in json.loads((package / "emoji.json").read_text()):
        if emoji["has_img_google"] and emoji["category"] != "Component":
            found[emoji["category"]].append(emoji)
    chosen = {}
    for category, all_of_it in found.items():
        all_of_it.sort(key=lambda emoji: emoji["sort_order"])
        count = min(PER_CATEGORY, len(all_of_it))
        chosen[category] = [all_of_it[at * len(all_of_it) // count] for at in range(count)]
    return chosen


def alpha(package: Path, chosen: dict[str, list[dict[str, str]]]) -> Image.Image:
    """The alpha channels of all chosen emoji below each other, sorted by their keys in the shards."""
    files = {
        f"{class_of(category)}_{name_of(one)}": package / "img" / "google" / "64" / one["image"]
        for category, emoji in chosen.items()
        for one in emoji
    }
    sheet = Image.new("L", (64, 64 * len(files)))
    for row, key in enumerate(sorted(files)):
        with Image.open(files[key]) as image:
            sheet.paste(image.convert("RGBA").getchannel("A"), (0, 64 * row))
    return sheet


def class_of(category: str) -> str:
    return re.sub(r"[^a-z]+", "-", category.lower())


def name_of(emoji: dict[str, str]) -> str:
    return emoji["short_name"].replace("+", "plus")


def main(package: Path) -> None:
    chosen = choose(package)
    alpha(package, chosen).save(HERE / "alpha.png", optimize=True)
    with tempfile.TemporaryDirectory() as work:
        for category, emoji in chosen.items():
            for position, one in enumerate(emoji):
                split = "test" if position % 5 == 2 else "train"
                folder = Path(work) / split / class_of(category)
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(package / "img" / "google" / "64" / one["image"], folder / f"{name_of(one)}.png")
        for split in ("train", "test"):
            shutil.rmtree(HERE / split, ignore_errors=True)
            print(run(ShardConfig(f"{work}/{split}", str(HERE / split), per_shard=PER_SHARD, prefix=f"{split}-")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
