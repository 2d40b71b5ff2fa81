"""What is said of models whose input has another size than the views: each is given the views resampled.

A view is made once, at the views' size, and resampled for every model by one rule (`unic_cache.inputs`). Down costs
little; a model that sees pixels made up beyond a factor of 1.5 computes features of a blurred image.
"""

from collections.abc import Mapping

from pipelines.command.progress import say

UPSAMPLED = 1.5  # times the views' size


def tell_teachers(view: int, sizes: Mapping[str, int], change: str) -> None:
    """Say which teachers would see views of `view` px up-sampled by more than UPSAMPLED, and the size to render at.

    `sizes` maps names to input sizes in px; `change` says how to get views of {size} px.
    """
    found = {name: size for name, size in sizes.items() if size > UPSAMPLED * view}
    for name, size in found.items():
        say(
            f"{name} sees {size} px, up-sampled {size / view:.2g} times from views of {view} px; "
            f"{change.format(size=max(found.values()))}, or run it at a smaller size (NAME@SIZE)"
        )


def tell_student(view: int, size: int, name: str = "the student") -> None:
    """Say if a student's input is not of the views' size, both in px."""
    if size > UPSAMPLED * view:
        say(f"{name} sees {size} px, up-sampled {size / view:.2g} times from views of {view} px: a blurred image")
    elif size != view:
        say(f"{name} sees {size} px, resampled from views of {view} px")
