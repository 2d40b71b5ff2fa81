"""Mean and std of pixels, as descriptions of models state them."""

from typing import Any

from unic_cache.errors import TeacherError

LARGEST = 4.0  # a larger mean or std is not one of pixels in [0, 1]
Colour = tuple[float, float, float]


def colours(mean: Any, std: Any, whose: str) -> tuple[Colour, Colour]:
    """Mean and std of RGB in [0, 1]. TeacherError for anything else, such as those of pixels up to 255."""
    return _colour(mean, f"{whose} mean"), _colour(std, f"{whose} std", positive=True)


def _colour(values: Any, what: str, positive: bool = False) -> Colour:
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise TeacherError(f"{what} is {values!r}, and must be three numbers") from error
    if not all(abs(value) <= LARGEST and (value > 0 or not positive) for value in (red, green, blue)):
        raise TeacherError(f"{what} {values!r} is not one of pixels in [0, 1]")
    return red, green, blue
