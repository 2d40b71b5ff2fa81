"""Batches of images and teachers' features for a training loop of one's own, read as `distill` reads them.

    dataset = unic_cache.FeatureDataset("cache", batch_size=256, device="cuda")
    for epoch in range(100):
        for batch in dataset:                       # one epoch; the next loop shows the next one
            image, cls = batch["image"], batch["dino"]["cls"]

Letters: B images, H and W pixels, C the 3 colours, T tokens of a grid, N of them that are given, D channels.
"""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from crc32c import crc32c
from torch.utils.data import IterableDataset, get_worker_info

from unic_cache.ahead import thread_pool
from unic_cache.cache import Cache, open_cache
from unic_cache.config.bounds import check_integers
from unic_cache.errors import ConfigError
from unic_cache.files.paths import check_path, check_pattern
from unic_cache.stream.address import Address
from unic_cache.stream.batches import Batch, Stream
from unic_cache.stream.choosing import (
    Chosen,
    chosen_numbers,
    chosen_rows,
    chosen_tars,
    chosen_teachers,
    chosen_views,
    listed,
)
from unic_cache.stream.decoder_probe import check_pixels
from unic_cache.stream.epoch_split import EpochSplit
from unic_cache.stream.given_batch import FeatureBatch, GivenBatch, labelled_rows, prepared
from unic_cache.stream.given_tokens import GivenTokens
from unic_cache.stream.loop_arguments import check_flags, several, this_rank, usable_device, views_asked
from unic_cache.stream.order import Order
from unic_cache.stream.pixels import KeptPixels, Pixels, ShardPixels
from unic_cache.token_kinds import Kinds

NO_WORKERS = (
    "a FeatureDataset reads ahead in threads of its own process, so worker processes would only read everything again: "
    "each would give every batch. Use DataLoader(dataset, batch_size=None, num_workers=0)"
)


@dataclass(eq=False, repr=False)
class FeatureDataset(IterableDataset[FeatureBatch]):
    """A cache's images and features in batches, in `distill`'s order and at its rate; checked as they are read.

    A batch is a dictionary:

    | key | value |
    |---|---|
    | "image" | views, uint8 (B, H, W, C); with `mean` and `std` float32 (B, C, S, S); absent with `images=False` |
    | "label" | class numbers, int64 (B,), -1 for an image without one; absent if no image has a label |
    | "key" | crc32 of the sample keys, int64 (B,): `zlib.crc32(b"n01440764_10026")`, as `Cache.features` takes it |
    | "view" | view numbers, int64 (B,) |
    | a teacher's name | {"cls": (B, D), "patch": (B, T, D)} float32, or other names of token kinds |

    If only N of a grid's T tokens are given, "patch" is (B, N, D), and the teacher has "positions" too, int64 (B, N):
    row * width + column in its grid. Tensors are on `device`. A batch is yours to keep: its memory is not used again.

    Each loop over the dataset is one epoch, in a new order and under the next cached view; `set_epoch` chooses another.
    An epoch has every image once over all ranks, and all ranks have `len(dataset)` batches: `batch_size` images each,
    and at the end what is left, divided evenly.

    For a DataLoader: `DataLoader(dataset, batch_size=None)`, without worker processes. `state_dict` and
    `load_state_dict` resume at the exact batch; torchdata's StatefulDataLoader calls them.

    Arguments:

    - `cache`: a folder, a URL, or an open `Cache`.
    - `batch_size`: images in a batch of one rank.
    - `shards`: the tars to read, a path, glob or braces; without such files, names in the cache. Default: all tars.
      Files are opened only to decode images whose pixels the cache does not keep (default then: shards/*.tar).
    - `split`: "train" for the tars not held out of training, "val" for those alone, "all" for both.
    - `teachers`, `kinds`: names; only these are read. Default: all.
    - `views`: how many views to cycle through, or their numbers. Default: all that every teacher has.
    - `recipe`, `size`, `view_seed`, `crop_scale`: which kind of views, if the cache has several; `recipe="center"` for
      evaluation.
    - `tokens`: give N patch tokens, at positions that teachers of one grid share. Default: all stored tokens.
    - `standardize`: "channel" (UNIC's), "phi-s", or "none" for the teacher's own scale.
    - `images`: False for features alone; no tars are needed then.
    - `mean`, `std`, `img_size`: give images as a network takes them: (x / 255 - mean) / std, resized if sizes differ.
    - `shuffle`, `seed`: the order of each epoch; False for the order of the cache.
    - `drop_last`: leave out the images after the last whole step of an epoch.
    - `rank`, `world`: this process and how many there are. Default: torch.distributed's if initialized, else 0 of 1.
    - `device`: where batches are decoded. Codes are copied there, which are far smaller than features.
    - `numpy`: give numpy arrays that share the tensors' memory; only on the CPU.
    - `skip_broken`: leave out rows that are not as committed, so that a batch may be smaller; `broken` counts them.
    - `pixel_tolerance`: the largest accepted difference of the probed views, up to 16, from the teachers', in levels of
      255. Above 0, no other row is checked.
    - `threads`: for reading and decoding; 0 means one per core.

    Errors are children of `UnicCacheError`, which is a ValueError: ConfigError for settings that cannot be, CacheError
    for what the cache lacks, BrokenError for stored bytes or pixels that are not as committed. They name settings as
    the command line does: --shards is `shards`.
    """

    cache: str | Path | Cache
    _: KW_ONLY
    batch_size: int
    shards: str | Path | None = None
    split: str = "train"
    teachers: Sequence[str] | str | None = None
    kinds: Sequence[str] | str | None = None
    views: int | Sequence[int] | None = None
    recipe: str | None = None
    size: int | None = None
    view_seed: int | None = None
    crop_scale: Sequence[float] | None = None
    tokens: int | None = None
    standardize: str = "channel"
    images: bool = True
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    img_size: int | None = None
    shuffle: bool = True
    seed: int = 0
    drop_last: bool = False
    rank: int | None = None
    world: int | None = None
    device: str | torch.device = "cpu"
    numpy: bool = False
    skip_broken: bool = False
    pixel_tolerance: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        numbers = ("batch_size", "size", "view_seed", "tokens", "img_size", "seed", "pixel_tolerance", "threads")
        check_integers({name: getattr(self, name) for name in numbers})
        flags = ("images", "shuffle", "drop_last", "numpy", "skip_broken")
        check_flags({name: getattr(self, name) for name in flags})
        self.rank, self.world = this_rank(self.rank, self.world)
        self.device = usable_device(self.device, self.numpy)
        cache = self.cache if isinstance(self.cache, Cache) else open_cache(check_path(str(self.cache), "cache"))
        self.chosen = chosen = self._choose(cache)
        rows, views = chosen.rows, chosen.views
        self.labels = labelled_rows(cache, rows)  # how many images have one
        self.broken = 0  # times an image was skipped
        self._split = EpochSplit(len(rows), self.batch_size, self.world, self.drop_last)
        self._order = Order(rows, chosen.numbers, self.seed, self.shuffle)
        tokens = GivenTokens(chosen.teachers, views.seed, self.tokens, self.standardize, self.device)
        preparation = prepared(self.mean, self.std, self.img_size, views.size, self.images)
        self._given = GivenBatch(
            cache, chosen.teachers, tokens, self.images, preparation, self.labels > 0, self.device, self.numpy
        )
        self._stream = self._open_stream(cache)
        self._place = self._next = (0, 0)  # (epoch, batch): reached, and where the next loop begins
        self._ahead: tuple[tuple[int, int], Generator[Batch, None, None]] | None = (
            None  # a stream that read on into the next epoch
        )

    def __iter__(self) -> Iterator[FeatureBatch]:
        """The batches of one epoch, or of its rest after `load_state_dict`. ConfigError in a worker process."""
        if get_worker_info() is not None:
            raise ConfigError(NO_WORKERS)
        return self._batches()

    def __len__(self) -> int:
        """Batches of a whole epoch, the same for every rank."""
        return self._split.steps

    def __repr__(self) -> str:
        chosen, views, images = self.chosen, self.chosen.views, len(self.chosen.rows)
        facts = [
            f"{images:,} images x {len(chosen.numbers)} views of {views.size} px ({views.kind})",
            f"labels of {'all' if self.labels == images else f'{self.labels:,}'}",
            f"teachers {', '.join(teacher.name for teacher in chosen.teachers)}",
            f"{len(self):,} batches of {self.batch_size} in an epoch of rank {self.rank} of {self.world}",
            f"not in split {self.split}: {listed(chosen.tars.left_out)}" if chosen.tars.left_out else "",
            f"{chosen.rows.left_out:,} broken images left out" if chosen.rows.left_out else "",
        ]
        return f"FeatureDataset({', '.join(fact for fact in facts if fact)})"

    def __getstate__(self) -> NoReturn:
        raise ConfigError(NO_WORKERS)

    @property
    def token_kinds(self) -> dict[str, Kinds]:
        """Each teacher's token kinds by name: `.channels`, and `.grid`, (height, width) in tokens or None."""
        return {teacher.name: teacher.kinds for teacher in self.chosen.teachers}

    def set_epoch(self, epoch: int) -> None:
        """Let the next loop show this epoch from its beginning; a place in it that was loaded is kept.

        Without it each loop shows the epoch after the last one begun.
        """
        check_integers({"epoch": epoch})
        if self._next[0] != epoch:
            self._next = (epoch, 0)
        self._place = self._next

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch given, and what the order depends on: JSON-ready, the same on every rank."""
        epoch, batch = self._place
        return {"epoch": epoch, "batch": batch, **self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next loop go on at the place of `state_dict`. ConfigError if batches would not be the same ones."""
        settings = self._settings()
        if state.get("records") == self._names_checksum():
            settings["records"] = state["records"]
        for name, own in settings.items():
            if name not in state or state[name] != own:
                raise ConfigError(
                    f"cannot resume: the state has {name} {state.get(name)!r}, but this dataset has {own!r}; make it "
                    "from the same cache with the same arguments"
                )
        place = {name: state.get(name) for name in ("epoch", "batch")}
        check_integers({name: "missing" if value is None else value for name, value in place.items()})
        epoch, batch = int(state["epoch"]), int(state["batch"])
        if batch >= len(self):
            raise ConfigError(f"cannot resume: batch {batch} of an epoch of {len(self)}")
        self._place = self._next = (epoch, batch)

    def _batches(self) -> Iterator[FeatureBatch]:
        epoch, begin = self._next
        self._next, stream = (epoch + 1, 0), self._stream_at(self._next)
        try:
            for batch in range(begin, len(self)):
                read = next(stream)
                self.broken += read.broken
                given = self._given(read)
                self._place = (epoch, batch + 1) if batch + 1 < len(self) else (epoch + 1, 0)
                yield given
        except BaseException:  # an error, or a loop that was left
            stream.close()
            raise
        self._ahead = (epoch + 1, 0), stream

    def _stream_at(self, place: tuple[int, int]) -> Generator[Batch, None, None]:
        """The stream that has read ahead to there, or a new one."""
        found, self._ahead = self._ahead, None
        if found is not None:
            if found[0] == place:
                return found[1]
            found[1].close()
        return self._stream.batches(self._wanted(*place))

    def _wanted(self, epoch: int, batch: int) -> Iterator[list[Address]]:
        """This rank's samples from there on, without end."""
        rank = self.rank or 0
        while True:
            for step in range(batch, len(self)):
                part, first = self._split.part(step, rank), epoch * len(self.chosen.rows)
                yield self._order.samples(first + part.start, first + part.stop)
            epoch, batch = epoch + 1, 0

    def _choose(self, cache: Cache) -> Chosen:
        teachers = chosen_teachers(cache, several("teachers", self.teachers), several("kinds", self.kinds))
        views = chosen_views(cache, teachers, self.recipe, self.size, self.view_seed, self.crop_scale)
        numbers = chosen_numbers(cache, teachers, views, views_asked(self.views))
        pattern = None if self.shards is None else check_pattern(str(self.shards), "shards")
        tars = chosen_tars(cache, pattern, self.split, views, numbers, self.images)
        return chosen_rows(cache, teachers, views, numbers, tars, self.skip_broken)

    def _open_stream(self, cache: Cache) -> Stream:
        chosen, pool, pin = self.chosen, thread_pool(self.threads), torch.device(self.device).type == "cuda"
        views, files = chosen.views, chosen.tars.files
        decoded = ShardPixels(views, files, pool, pin)
        if files:
            check_pixels(cache.location, decoded, self.pixel_tolerance)
        kept = KeptPixels(views, cache, pool, self.skip_broken, pin)
        return Stream(
            cache,
            chosen.teachers,
            views,
            Pixels(kept, decoded) if self.images else None,
            pool,
            check_pixels=self.pixel_tolerance == 0,
            pin=pin,
            skip_broken=self.skip_broken,
        )

    def _settings(self) -> dict[str, Any]:
        """What the batches' images and their order depend on."""
        return {
            "images": len(self.chosen.rows),
            "views": [self.chosen.views.name(number) for number in self.chosen.numbers],
            "records": self.chosen.checksum,
            "batch_size": self.batch_size,
            "world": self.world,
            "drop_last": self.drop_last,
            "shuffle": self.shuffle,
            "seed": self.seed,
        }

    def _names_checksum(self) -> int:
        """What a state of an earlier release has for `records`: it changes when records are sealed."""
        return int(crc32c(json.dumps(dict(self.chosen.records), sort_keys=True).encode()))
