"""Make the demo's shards anew: `python make.py PACKAGE`, where PACKAGE is the unpacked emoji-datasource-google 16.0.0.

Of each category at most 90 base emoji, evenly spaced over `sort_order`; of those, positions 2, 7, 12, ... are held out.
"""

import json
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

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


def main(package: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        for category, emoji in choose(package).items():
            for position, one in enumerate(emoji):
                split = "test" if position % 5 == 2 else "train"
                folder = Path(work) / split / re.sub(r"[^a-z]+", "-", category.lower())
                folder.mkdir(parents=True, exist_ok=True)
                name = one["short_name"].replace("+", "plus")
                shutil.copy(package / "img" / "google" / "64" / one["image"], folder / f"{name}.png")
        for split in ("train", "test"):
            shutil.rmtree(HERE / split, ignore_errors=True)
            print(run(ShardConfig(f"{work}/{split}", str(HERE / split), per_shard=PER_SHARD, prefix=f"{split}-")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
