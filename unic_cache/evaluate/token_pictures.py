"""Pictures of patch tokens: principal components as colours, norms as brightness, in rows beside the images.

Colours follow DINOv2's figure (arXiv 2304.07193): the first principal component of an encoder's tokens over all images
tells foreground from background; three components of the foreground's tokens alone are red, green and blue.

Letters: N images, T stored tokens, D channels; h, w the grid; H, W pixels of a picture; C colours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from unic_cache.evaluate.drawing import INK, WIDTH, Picture, finish, label, new_figure, style
from unic_cache.token_kinds import Grid

Floats = npt.NDArray[np.floating]
Pixels = npt.NDArray[np.uint8]
CELL, GAP, NOTE = 112, 6, 16  # pixels: of a picture in a row, between two, and of a note below
MARGIN = 1.4  # inches, for the rows' names
TAILS = 2.0  # percent of the tokens at either end of a colour's scale


@dataclass(frozen=True)
class Tokens:
    """One encoder's grid tokens of all images, in its own values."""

    name: str
    grid: Grid
    values_NTD: Floats
    positions_NT: npt.NDArray[np.int64] | None = None  # of stored tokens on the grid; None if all are stored


@dataclass(frozen=True)
class Row:
    """A named row of pictures (N, H, W, 3 or 4)."""

    name: str
    pictures: Sequence[Pixels]
    notes: Sequence[str] = ()  # below each picture


def component_maps(tokens: Tokens) -> Pixels:
    """(N, h, w, 4) RGBA: three principal components of the foreground as colours; all else is transparent.

    One basis for all images. Foreground is where the first component is above its mean; its sign is chosen so that the
    middle of the images has more of it than their borders. Other signs make the largest loading positive.
    """
    values_XD = tokens.values_NTD.reshape(-1, tokens.values_NTD.shape[-1]).astype(np.float64)
    first_X = _components(values_XD, 1)[:, 0]
    middle_X = _in_the_middle(tokens).ravel()
    if middle_X.any() and not middle_X.all() and first_X[middle_X].mean() < first_X[~middle_X].mean():
        first_X = -first_X
    front_X = first_X > 0
    if front_X.sum() < 4:
        front_X = np.ones_like(front_X)
    colours_XC = np.full((len(values_XD), 4), 0.5)
    count = min(3, values_XD.shape[1], int(front_X.sum()))
    found = _components(values_XD[front_X], count)
    low, high = np.percentile(found, [TAILS, 100 - TAILS], axis=0)
    colours_XC[front_X, :count] = (found - low) / np.maximum(high - low, 1e-12)
    colours_XC[:, 3] = front_X
    return _on_grid(tokens, (colours_XC.clip(0, 1) * 255).round().astype(np.uint8))


def norm_maps(tokens: Tokens) -> tuple[Pixels, float, float]:
    """(N, h, w, 4) RGBA of the tokens' L2 norms, from the least to the greatest of all images; and these two."""
    norms_NT = np.linalg.norm(tokens.values_NTD.astype(np.float64), axis=-1)
    return value_maps(tokens, norms_NT)


def value_maps(tokens: Tokens, values_NT: Floats) -> tuple[Pixels, float, float]:
    """(N, h, w, 4) RGBA of one value per token, dark to bright; the least and the greatest value."""
    from matplotlib import colormaps

    low, high = float(values_NT.min()), float(values_NT.max())
    scaled = (values_NT - low) / max(high - low, 1e-12)
    shades = (colormaps["viridis"](scaled.ravel()) * 255).round().astype(np.uint8)
    return _on_grid(tokens, shades), low, high


@style()
def row_figure(rows: Sequence[Row], name: str, title: str, alt: str, caption: str) -> Picture:
    """Rows of pictures, each with its name at the left."""
    columns = max(len(row.pictures) for row in rows)
    pitch = CELL + GAP
    down = pitch + NOTE * any(row.notes for row in rows)
    sheet = np.zeros((len(rows) * down, columns * pitch, 4), np.uint8)
    for number, row in enumerate(rows):
        for across, picture in enumerate(row.pictures):
            sheet[number * down :, across * pitch :][:CELL, :CELL] = _cell(picture)
    inch = min((WIDTH - MARGIN) / sheet.shape[1], 1.3 / pitch)
    figure = new_figure(MARGIN + inch * sheet.shape[1], inch * sheet.shape[0] + 0.1)
    axes = figure.subplots()
    for number, row in enumerate(rows):
        for across, note in enumerate(row.notes):
            place = across * pitch + CELL / 2, number * down + CELL + 2
            axes.text(*place, label(note), ha="center", va="top", fontsize=7)
    axes.imshow(sheet, interpolation="none", aspect="equal")
    axes.set_yticks(
        [number * down + CELL / 2 for number in range(len(rows))],
        [label(row.name, 15) for row in rows],
        color=INK,
    )
    axes.set_xticks([])
    axes.set_anchor("E")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return finish(figure, name, title, alt, caption)


def _components(values_XD: Floats, count: int) -> Floats:
    """(X, count): principal components, the largest loading of each positive; zeros of tokens that are all equal."""
    from sklearn.decomposition import PCA

    with np.errstate(invalid="ignore"):  # shares of no variance
        return np.asarray(PCA(count, svd_solver="covariance_eigh").fit_transform(values_XD))


def _cell(picture: Pixels) -> Pixels:
    """A picture as RGBA (CELL, CELL, 4): photographs smoothly, maps of tokens with sharp edges."""
    found = Image.fromarray(picture).convert("RGBA")
    is_map = picture.shape[-1] == 4
    return np.asarray(found.resize((CELL, CELL), Image.Resampling.NEAREST if is_map else Image.Resampling.LANCZOS))


def _on_grid(tokens: Tokens, colours_XC: Pixels) -> Pixels:
    """Colours of all stored tokens (N T, 4) at their places (N, h, w, 4); other places are transparent."""
    height, width = tokens.grid
    images, stored = tokens.values_NTD.shape[:2]
    sheet = np.zeros((images, height * width, 4), np.uint8)
    np.put_along_axis(sheet, _places(tokens)[..., None], colours_XC.reshape(images, stored, 4), axis=1)
    return sheet.reshape(images, height, width, 4)


def _places(tokens: Tokens) -> npt.NDArray[np.int64]:
    if tokens.positions_NT is not None:
        return tokens.positions_NT
    images, stored = tokens.values_NTD.shape[:2]
    return np.broadcast_to(np.arange(stored), (images, stored))


def _in_the_middle(tokens: Tokens) -> npt.NDArray[np.bool_]:
    """(N, T): whether a token is in the middle half of both sides."""
    rows_NT, columns_NT = np.divmod(_places(tokens), tokens.grid[1])
    height, width = tokens.grid
    inside = (np.abs(rows_NT + 0.5 - height / 2) <= height / 4) & (np.abs(columns_NT + 0.5 - width / 2) <= width / 4)
    return np.asarray(inside)
