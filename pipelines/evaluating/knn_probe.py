"""k-NN of a student while it trains: what `evaluate --encoder STUDENT --shards PATTERN` would say of it at that moment.

The images, their views, the batches and the rules are `evaluate`'s: `center` views of the student's input size, twins
that do not vote for each other, leave-one-out.

Letters: N images, B of a batch, D channels, H and W pixels, P pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipelines.command.progress import Progress, say
from pipelines.evaluating.labelled import LabelledShards, Usable, check_labels, labelled, prints_of, tell_twins, twins
from unic_cache.ahead import ahead
from unic_cache.config import CENTER, Views
from unic_cache.errors import ShardError
from unic_cache.evaluate.bootstrap import bootstrap
from unic_cache.evaluate.knn import knn_leave_one_out
from unic_cache.stream.address import Address
from unic_cache.stream.pixels import ShardPixels, ViewBatch
from unic_cache.student.backbone import EncoderSpec, embed, prepare
from unic_cache.tf32 import float32_products
from unic_cache.views.classes import check_classes, classes_beside
from unic_cache.views.index import ShardEntry

BATCH = 64  # images, as in `evaluate`
DECODED_AHEAD = 3  # batches
IN_MEMORY = 2 * 2**30  # bytes of views; 14,266 images of 224 px
NEIGHBOURS = 20
SEED = 0  # of the interval, as `evaluate`'s by default

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class KnnProbe:
    """Labelled images to measure a student on, again and again."""

    spec: EncoderSpec
    views: Callable[[], Iterator[Image]]  # of each batch, (B, H, W, 3), without images that cannot be used
    labels_N: Tensor
    twins_P2: Tensor

    @torch.no_grad()
    def measure(self, encoder: nn.Module) -> dict[str, Any]:
        """{"accuracy", "low", "high", "k", "images"}: the share of images that the others classify, with its interval.

        The encoder runs in float32 and in evaluation mode, on its own device, and draws no random number; it is left in
        the mode that it was in. ConfigError if its features are not finite.
        """
        training, device = encoder.training, next(encoder.parameters()).device
        encoder.eval()
        with float32_products(tf32=False):
            parts = [embed(encoder, prepare(torch.from_numpy(v).to(device), self.spec)) for v in self.views() if len(v)]
            k = min(NEIGHBOURS, len(self.labels_N) - 1)
            right = knn_leave_one_out(torch.cat(parts), self.labels_N, [k], twins_P2=self.twins_P2)[k]
        encoder.train(training)
        found = bootstrap(right, SEED)
        return {"accuracy": found.mean, "low": found.low, "high": found.high, "k": k, "images": len(right)}


def open_knn_probe(
    pattern: str, spec: EncoderSpec, pool: ThreadPoolExecutor, trained: Callable[[ShardEntry], bool]
) -> KnnProbe:
    """Decode the labelled images of the tars, and keep them in memory unless they are too many.

    `trained` tells the tars that are trained on: shared images are reported.
    ShardError without labels of two classes, or if two folders number their classes differently.
    """
    try:
        images = classed(labelled(pattern, None))
    except ShardError as error:
        raise ShardError(f"--knn-shards: {error}") from error
    source = ShardPixels(Views(CENTER, spec.img_size, 0), images.tars, pool)
    usable = Usable(images, {}, source)
    groups = [images.wanted[start : start + BATCH] for start in range(0, len(images.wanted), BATCH)]
    size = len(images.wanted) * spec.img_size**2 * 3
    kept: list[Image] = []
    with Progress("distill: k-NN images", len(images.wanted), "images") as progress:
        for number, batch in enumerate(_decoded(source, groups)):
            usable.add(number * BATCH, prints_of(batch), batch.bad)
            if size <= IN_MEMORY:
                kept.append(np.delete(batch.views_BHWC, list(batch.bad), axis=0))
            progress.advance(len(groups[number]))
    usable.finish()
    rows_N = np.flatnonzero(usable.good_N)
    check_labels(pattern, images.labels_N[rows_N].tolist())
    pairs_P2 = torch.from_numpy(np.searchsorted(rows_N, twins(usable, usable).numpy()))
    announce(usable, pairs_P2, size, trained)

    def again() -> Iterator[Image]:
        for start, batch in zip(range(0, len(images.wanted), BATCH), _decoded(source, groups), strict=True):
            here = slice(start, start + BATCH)
            good_B = usable.good_N[here]
            if (prints_of(batch) != usable.prints_N[here])[good_B].any():
                raise ShardError(f"{pattern}: images for k-NN changed during training; restore the tars")
            yield batch.views_BHWC[good_B]

    views = (lambda: iter(kept)) if size <= IN_MEMORY else again
    return KnnProbe(spec, views, images.labels_N[rows_N], pairs_P2)


def classed(images: LabelledShards) -> LabelledShards:
    """Only the images with a class. ShardError without two classes, or if folders number their classes differently."""
    rows = np.flatnonzero(images.classed)
    check_labels(images.pattern, images.labels_N[rows].tolist())
    wanted = [images.wanted[row] for row in rows.tolist()]
    check_classes(classes_beside([images.tars[place][0] for place in dict.fromkeys(item[:2] for item in wanted)]))
    return LabelledShards(
        images.pattern, images.tars, wanted, images.labels_N[rows], images.masked_N[rows], images.deep_N[rows]
    )


def announce(usable: Usable, twins_P2: Tensor, size: int, trained: Callable[[ShardEntry], bool]) -> None:
    """Say what k-NN is measured on, what it costs in memory (`size` bytes), and how much of it is trained on."""
    rows_N = np.flatnonzero(usable.good_N)
    classes, pixels = len(set(usable.images.labels_N[rows_N].tolist())), usable.source.views.size
    where = (
        f"kept in memory ({size / 1e6:,.0f} MB)"
        if size <= IN_MEMORY
        else f"decoded anew each time ({size / 2**30:,.1f} GiB are too many for memory)"
    )
    say(f"k-NN on {len(rows_N):,} images of {classes:,} classes at every validation, views of {pixels} px {where}")
    twice = tell_twins(usable, usable, twins_P2, rows_N)
    if twice:
        say(f"k-NN: {twice}; twins do not vote for each other")
    shared = {place for place, (_, entry) in usable.images.tars.items() if trained(entry)}
    rows = sum(usable.images.wanted[row][:2] in shared for row in rows_N.tolist())
    if rows:
        say(f"k-NN: {rows:,} of these images are in tars that are trained on, without their labels")


def _decoded(source: ShardPixels, groups: Sequence[Sequence[Address]]) -> Iterator[ViewBatch]:
    return ahead(groups, lambda group: source.start(group, len(group)), DECODED_AHEAD)
