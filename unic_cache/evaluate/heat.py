"""A figure of numbers on grids: one panel each, a colour per cell, one scale from 0 to 1."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from unic_cache.evaluate.drawing import Picture, finish, panels, style


@style()
def share_figure(
    grids: Mapping[str, npt.NDArray[np.float64]], across: str, up: str, words: tuple[str, str, str, str]
) -> Picture:
    """Shares (h, w) by name, as percent; `words` are the figure's name, title, alt and caption."""
    figure, axes = panels(len(grids), 2.9)
    for own, (name, shares) in zip(axes, grids.items(), strict=True):
        own.grid(False)
        drawn = own.imshow(100 * shares, vmin=0, vmax=100, cmap="viridis", interpolation="nearest")
        own.set(title=name, xlabel=across, ylabel=up)
        figure.colorbar(drawn, ax=own, label="%")
    return finish(figure, *words)
