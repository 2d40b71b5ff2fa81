"""A figure of numbers on grids: one panel each, a colour per cell, one scale for all."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from unic_cache.evaluate.drawing import HALF, Picture, finish, label, panels, style


@style()
def grid_figure(
    grids: Mapping[str, npt.NDArray[np.float64]], axes_named: tuple[str, str, str], words: tuple[str, str, str, str]
) -> Picture:
    """Numbers (h, w) by name. Axes are named across, up and colour; `words` are name, title, alt text and caption."""
    across, up, colour = axes_named
    figure, axes = panels(len(grids), 2.9)
    most = max(float(values.max()) for values in grids.values())
    for own, (name, values) in zip(axes, grids.items(), strict=True):
        own.grid(False)
        drawn = own.imshow(values, vmin=0, vmax=most, cmap="viridis", interpolation="nearest")
        own.set(title=label(name, HALF), xlabel=across, ylabel=up)
        figure.colorbar(drawn, ax=own, label=colour)
    return finish(figure, *words)
