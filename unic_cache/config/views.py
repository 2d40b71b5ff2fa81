"""Which views of the images: their recipe, size and seed."""

from dataclasses import dataclass
from typing import Self

from unic_cache.config.bounds import check_choice, check_numbers
from unic_cache.config.choices import RECIPES
from unic_cache.errors import ConfigError


@dataclass(frozen=True)
class Views:
    """Which views: view `number` of an image is a pure function of (recipe, size, seed, the image's key, number)."""

    recipe: str = "unic"
    size: int = 224  # pixels, height and width
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("recipe", self.recipe, RECIPES)
        check_numbers(self)

    def name(self, number: int) -> str:
        """The view's folder in a store, such as 'unic-224-0-003'."""
        return f"{self.recipe}-{self.size}-{self.seed}-{number:03d}"

    @classmethod
    def parse(cls, name: str) -> tuple[Self, int]:
        """The inverse of `name`: (views, number). ConfigError if no view has that name."""
        try:
            recipe, size, seed, number = name.split("-")
            return cls(recipe, int(size), int(seed)), int(number)
        except ValueError as error:
            raise ConfigError(f"{name!r} is not a view's name, such as 'unic-224-0-003'") from error
