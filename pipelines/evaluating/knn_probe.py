"""k-NN of a student while it trains: what `evaluate --encoder STUDENT --shards PATTERN` would say of it at that moment.

The images, their views, the batches and the rules are `evaluate`'s: `center` views of the student's input size, twins
that do not vote for each other, leave-one-out.

Letters: N images, B of a batch, D channels, H and W pixels, P pairs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pipelines.command.progress import Progress, say
from pipelines.evaluating.labelled import Usable, among, check_labels, labelled, prints_of, twins
from unic_cache.ahead import ahead
from unic_cache.config import CENTER, Views
from unic_cache.errors import ShardError
from unic_cache.evaluate.knn import knn_leave_one_out
from unic_cache.stream.address import Address
from unic_cache.stream.pixels import ShardPixels, ViewBatch
from unic_cache.student.backbone import EncoderSpec, embed, prepare
from unic_cache.tf32 import float32_products
from unic_cache.views.classes import check_classes, classes_beside

BATCH = 64  # images, as in `evaluate`
DECODED_AHEAD = 3  # batches
IN_MEMORY = 2 * 2**30  # bytes of views; 14,266 images of 224 px
NEIGHBOURS = 20

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class KnnProbe:
    """Labelled images to measure a student on, again and again."""

    spec: EncoderSpec
    views: Callable[[], Iterator[Image]]  # of each batch, (B, H, W, 3), without images that cannot be used
    labels_N: Tensor
    twins_P2: Tensor

    @torch.no_grad()
    def measure(self, encoder: VisionTransformer) -> dict[str, Any]:
        """{"accuracy", "k", "images"}: the share of the images that the others classify correctly.

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
        return {"accuracy": float(right.mean()), "k": k, "images": len(right)}


def open_knn_probe(
    pattern: str, spec: EncoderSpec, pool: ThreadPoolExecutor, trained: Mapping[str, Sequence[int]]
) -> KnnProbe:
    """Decode the labelled images of the tars, and keep them in memory unless they are too many.

    `trained` maps the names of the tars that are trained on to their images' keys: shared images are reported.
    ShardError without labels of two classes, or if two folders number their classes differently.
    """
    try:
        found = labelled(pattern, None)
        images = found.only(found.classed)
        check_labels(pattern, images.labels_N.tolist())
    except ShardError as error:
        raise ShardError(f"--knn-shards: {error}") from error
    check_classes(classes_beside([path for path, _ in images.tars.values()]))
    source = ShardPixels(Views(CENTER, spec.img_size, 0), images.tars, pool)
    usable = Usable(images, {}, source)
    groups = [images.wanted[start : start + BATCH] for start in range(0, len(images.wanted), BATCH)]
    size = len(images.wanted) * spec.img_size**2 * 3
    kept, seen = [], []
    with Progress("distill: k-NN images", len(images.wanted), "images") as progress:
        for number, batch in enumerate(_decoded(source, groups)):
            usable.add(number * BATCH, prints_of(batch), batch.bad)
            rows = np.setdiff1d(np.arange(len(batch.crcs)), list(batch.bad)).astype(np.int64)
            seen.append((rows, batch.crcs[rows]))
            if size <= IN_MEMORY:
                kept.append(batch.views_BHWC[rows])
            progress.advance(len(groups[number]))
    usable.finish()
    good = np.flatnonzero(usable.good_N)
    labels_N, pairs_P2 = images.labels_N[good], among(twins(usable, usable), good, good)
    check_labels(pattern, labels_N.tolist())
    announce(usable, labels_N, size, trained)

    def again() -> Iterator[Image]:
        for (rows, crcs), batch in zip(seen, _decoded(source, groups), strict=True):
            if (batch.crcs[rows] != crcs).any():
                raise ShardError(f"{pattern}: images for k-NN changed during training; restore the tars")
            yield batch.views_BHWC[rows]

    return KnnProbe(spec, (lambda: iter(kept)) if size <= IN_MEMORY else again, labels_N, pairs_P2)


def announce(usable: Usable, labels_N: Tensor, size: int, trained: Mapping[str, Sequence[int]]) -> None:
    """Say what k-NN is measured on, what it costs in memory (`size` bytes), and how much of it is trained on."""
    count, classes, pixels = len(labels_N), len(set(labels_N.tolist())), usable.source.views.size
    where = (
        f"kept in memory ({size / 1e6:,.0f} MB)"
        if size <= IN_MEMORY
        else f"decoded anew each time ({size / 2**30:,.1f} GiB are too many for memory)"
    )
    say(f"k-NN on {count:,} images of {classes:,} classes at every validation, views of {pixels} px {where}")
    shared = [entry for _, entry in usable.images.tars.values() if trained.get(entry.name) == entry.keys]
    if shared:
        rows = sum(entry.rows for entry in shared)
        say(f"k-NN: {rows:,} of these images are in tars that are trained on, without their labels")


def _decoded(source: ShardPixels, groups: Sequence[Sequence[Address]]) -> Iterator[ViewBatch]:
    return ahead(groups, lambda group: source.start(group, len(group)), DECODED_AHEAD)
