"""The images that a student finds hardest, by its loss against the cached tokens.

Letters: N images, n teachers.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipelines.reporting.images import Source, photographs
from unic_cache.evaluate.page import Grid, Section
from unic_cache.evaluate.token_pictures import Row, row_figure
from unic_cache.stream.address import Address

ROW, ROWS = 6, 2  # images in a row of pictures, and rows of the hardest


def hardest_section(
    source: Source, wanted: Sequence[Address], losses_nN: npt.NDArray[np.floating], about: str
) -> Section:
    """The images with the highest mean loss over all teachers, and for comparison those with the lowest."""
    mean_N = losses_nN.mean(axis=0)
    order = np.argsort(-mean_N, kind="stable").tolist()
    hardest, easiest = order[: ROW * ROWS], order[: ROW * ROWS - 1 : -1][:ROW]
    chosen = [*hardest, *easiest]
    pictures = photographs(source.batch([wanted[place] for place in chosen]))
    rows = []
    for start in range(0, len(chosen), ROW):
        places = chosen[start : start + ROW]
        name = "hardest" if start == 0 else "next" if start < len(hardest) else "easiest"
        rows.append(Row(name, pictures[start : start + ROW], [f"{mean_N[place]:.3f}" for place in places]))
    picture = row_figure(
        rows,
        "hardest-images",
        "Hardest images",
        f"The images with the highest loss, {mean_N[order[0]]:.3f} to {mean_N[hardest[-1]]:.3f}, and the easiest.",
        f"Below each image: its loss, the mean over teachers. Mean of all {len(wanted):,} images: {mean_N.mean():.4f}.",
    )
    table_rows = [
        [
            f"{source.cache.entry(wanted[place].segment, wanted[place].shard).name} row {wanted[place].row}",
            f"{mean_N[place]:.4f}",
            *(f"{loss:.4f}" for loss in losses_nN[:, place]),
        ]
        for place in hardest
    ]
    head = ["image", "loss", *(teacher.name for teacher in source.teachers)]
    return Section("What the student finds hardest", about, [picture], [Grid("Hardest images", head, table_rows)])
