"""Which views of the images: their recipe, size, seed and crop scale."""

from dataclasses import dataclass
from typing import Self

from unic_cache.config.bounds import check_choice, check_numbers
from unic_cache.config.choices import CENTER, RECIPES
from unic_cache.errors import ConfigError

CROP_SCALE = (0.08, 1.0)  # UNIC's


@dataclass(frozen=True)
class Views:
    """Which views: view `number` of an image is a pure function of these fields, the image's key, and `number`."""

    recipe: str = "unic"
    size: int = 224  # pixels, height and width
    seed: int = 0
    crop_scale: tuple[float, float] = CROP_SCALE  # least and largest share of the image's area in a crop

    def __post_init__(self) -> None:
        check_choice("recipe", self.recipe, RECIPES)
        check_numbers(self)
        check_crop_scale(self.crop_scale)
        if self.recipe == CENTER and self.crop_scale != CROP_SCALE:
            raise ConfigError(f"recipe {CENTER} always takes the largest central square; leave out --crop-scale")

    def __str__(self) -> str:
        """In words, for messages."""
        return f"{self.kind} views of {self.size} px (seed {self.seed})"

    @property
    def kind(self) -> str:
        """Recipe and crop scale, such as 'unic', or 'unic@0.4to1' if the scale is not UNIC's."""
        if self.crop_scale == CROP_SCALE:
            return self.recipe
        return f"{self.recipe}@{'to'.join(_plain(share) for share in self.crop_scale)}"

    def name(self, number: int) -> str:
        """The view's folder in a store, such as 'unic-224-0-003' or 'unic@0.4to1-224-0-003'."""
        return f"{self.kind}-{self.size}-{self.seed}-{number:03d}"

    @classmethod
    def parse(cls, name: str) -> tuple[Self, int]:
        """The inverse of `name`: (views, number). ConfigError if no view has that name."""
        try:
            kind, size, seed, number = name.split("-")
            recipe, *scales = kind.split("@")
            if not scales:
                return cls(recipe, int(size), int(seed)), int(number)
            (scale,) = scales
            least, most = map(float, scale.split("to"))
            return cls(recipe, int(size), int(seed), (least, most)), int(number)
        except ValueError as error:
            raise ConfigError(f"{name!r} is not a view's name, such as 'unic-224-0-003'") from error


def check_crop_scale(scale: tuple[float, float] | None) -> None:
    """ConfigError unless the least share is at most the largest."""
    if scale is not None and scale[0] > scale[1]:
        raise ConfigError(f"crop-scale {scale[0]},{scale[1]}: the least share comes first, as in 0.4,1")


def _plain(share: float) -> str:
    """The shortest text that gives the number back: at 0.01 and more, repr has no exponent."""
    return repr(float(share)).removesuffix(".0")
