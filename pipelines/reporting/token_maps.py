"""PCA of the patch tokens of every teacher and student, on the same images.

Letters: N images, T tokens, D channels.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from pipelines.reporting.images import center_views, given_tars, open_source, photographs, readable, teacher_tokens
from pipelines.reporting.inputs import Run
from unic_cache.ahead import thread_pool
from unic_cache.cache import Cache
from unic_cache.errors import CacheError
from unic_cache.evaluate.drawing import Picture
from unic_cache.evaluate.token_pictures import Row, Tokens, component_maps, row_figure
from unic_cache.stream.batches import Batch
from unic_cache.student.backbone import prepare, tokens
from unic_cache.student.export import load_encoder


def token_figure(cache: Cache, runs: Sequence[Run], pattern: str | None, count: int, threads: int) -> Picture:
    """PCA maps of all teachers of the cache and of every run's student on `count` images of the cache.

    CacheError if the teachers have no center view in common, or of no image whose pixels are there.
    """
    teachers = readable(cache)
    views = center_views(cache, teachers)
    with thread_pool(threads) as pool:
        source = open_source(cache, teachers, views, given_tars(cache, pattern), pool)
        wanted = source.spread(0, count)
        if not wanted:
            raise CacheError(
                f"{cache.location.url}: no tar that was given, and no kept view, has center views of {views.size} px; "
                "name with --shards tars that `extract --recipe center` was given"
            )
        batch = source.batch(wanted)
        found = [*teacher_tokens(source, batch), *(student_tokens(run.folder, run.label, batch) for run in runs)]
    rows = [Row("images", photographs(batch)), *(Row(one.name, list(component_maps(one))) for one in found)]
    names = ", ".join(one.name for one in found)
    return row_figure(
        rows,
        "patch-token-components",
        "Patch tokens in three components",
        f"Images, and below each the principal components of the patch tokens of {names} as colours.",
        f"{len(wanted)} images of the cache under the center view of {views.size} px. One basis per encoder: "
        "colours compare along a row and not between rows. Tokens below the mean of the first component, the "
        "background, are left clear; the colours are three components of the others. Teachers: from the cache; "
        "students: tokens after the final norm.",
    )


@torch.inference_mode()
def student_tokens(folder: Path, name: str, batch: Batch) -> Tokens:
    """The patch tokens (N, T, D) of a run's exported encoder, after its final norm if it has one over tokens."""
    encoder, spec, _ = load_encoder(folder)
    _, tokens_NTD = tokens(encoder, prepare(batch.views_BHWC, spec))
    return Tokens(name, spec.grid, tokens_NTD.numpy())
