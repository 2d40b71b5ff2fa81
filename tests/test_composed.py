"""Emoji on photographs: masks that are exact, splits that share nothing, bytes that depend on the arguments alone."""

import io
import json
import tarfile
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from examples import composed
from examples.composed import SPLITS, Emoji, Pasted, Recipe, all_emoji, compose, photographs, placed, recipe, write
from tests.conftest import tree

S = 40  # pixels


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("composed")
    write(out, 160, S, 3)
    return out


def members(folder) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def test_alpha_channels_are_those_of_the_committed_emoji():
    """Over white, alpha a leaves 1 - a of the white: no channel is below it, and without alpha there is white alone."""
    counts = Counter()
    for split in SPLITS:
        for key, emoji in all_emoji()[split].items():
            over_white, alpha = np.asarray(emoji.over_white, int), np.asarray(emoji.alpha, int)[..., None]
            assert over_white.shape == (64, 64, 3)
            assert (over_white[alpha[..., 0] == 0] == 255).all(), key
            assert (over_white >= 254 - alpha).all(), key
            assert (alpha == 255).any(), key
            counts[split] += 1
    assert counts == {"train": 644, "test": 161}


@pytest.mark.parametrize("split", list(SPLITS))
def test_every_pixel_is_the_photographs_or_the_last_emojis(split):
    """Pixel by pixel from the recipe: opaque ones are the emoji's own, clear ones the photograph's, others between."""
    seen = Counter()
    for number in range(6):
        made_of = recipe(1, split, number, S)
        image, mask = compose(made_of, split, S)
        photograph = photographs()[made_of.photograph].resize((S, S), Image.Resampling.BICUBIC, made_of.box)
        behind = np.asarray(photograph)[:, ::-1] if made_of.mirrored else np.asarray(photograph)
        layers = [(all_emoji()[split][one.key].mask_class, *placed(one, split, S)) for one in made_of.emoji]
        for y in range(S):
            for x in range(S):
                colour, kind, exact = behind[y, x], 0, True
                for mask_class, over_white, alpha, left, upper in layers:
                    if upper <= y < upper + len(alpha) and left <= x < left + alpha.shape[1]:
                        a = alpha[y - upper, x - left]
                        colour = over_white[y - upper, x - left] if a == 255 else colour
                        exact = a == 255 or (exact and a == 0)
                        kind = mask_class if a >= 128 else kind
                assert mask[y, x] == kind
                assert not exact or (image[y, x] == colour).all()
                seen[exact, kind > 0] += 1
    assert min(seen[True, True], seen[True, False], seen[False, True], seen[False, False]) > 50


def test_an_emoji_over_grey_is_what_pillow_pastes(monkeypatch):
    """At half transparency too: the emoji's own colours, which the committed image lacks, are not needed."""
    whole = Image.new("RGBA", (64, 64), (200, 40, 90))
    gradient = Image.fromarray(np.arange(64 * 64).reshape(64, 64).astype(np.uint8))
    whole.putalpha(gradient)
    white, grey = (Image.alpha_composite(Image.new("RGBA", (64, 64), (v, v, v)), whole) for v in (255, 117))
    emoji = Emoji(white.convert("RGB"), gradient, 5)
    monkeypatch.setattr(composed, "all_emoji", lambda: {"train": {"it": emoji}})
    monkeypatch.setattr(composed, "photographs", lambda: (Image.new("RGB", (64, 64), (117, 117, 117)),))
    image, mask = compose(Recipe(0, (0, 0, 64, 64), False, (Pasted("it", 64, 0, 0.0, 0.0),)), "train", 64)
    assert np.abs(image.astype(int) - np.asarray(grey.convert("RGB"), int)).max() <= 1
    assert np.array_equal(mask, np.where(np.asarray(gradient) >= 128, 5, 0))


def test_training_and_test_images_share_neither_emoji_nor_photograph():
    keys = {split: set(all_emoji()[split]) for split in SPLITS}
    assert not keys["train"] & keys["test"]
    recipes = {split: [recipe(0, split, number, 128) for number in range(150)] for split in SPLITS}
    for number, photograph in enumerate(photographs()):
        boxes = {split: [one.box for one in found if one.photograph == number] for split, found in recipes.items()}
        assert max(box[2] for box in boxes["train"]) <= min(box[0] for box in boxes["test"])
        for left, upper, right, lower in (*boxes["train"], *boxes["test"]):
            assert 0 <= left < right <= photograph.width
            assert 0 <= upper < lower <= photograph.height
            assert right - left == lower - upper
    for split, found in recipes.items():
        assert {one.key for made_of in found for one in made_of.emoji} <= keys[split]
        assert {len(made_of.emoji) for made_of in found} == {1, 2, 3}


def test_the_tars_have_the_images_and_masks_and_no_labels(made):
    for split, count in (("train", 120), ("test", 40)):
        found = members(made / split)
        assert len(found) == 2 * count
        classes = set()
        for number in range(count):
            image, mask = compose(recipe(3, split, number, S), split, S)
            key = f"{split}-{number:06d}"
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(found[f"{key}.png"]))), image)
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(found[f"{key}.mask.png"]))), mask)
            classes |= set(np.unique(mask).tolist())
        assert classes == set(range(10))
    tars = {path.name for folder in (made, composed.EMOJI) for path in folder.glob("t*/*.tar")}
    assert len(tars) == 2 + 9, "one cache can hold the emoji and these"
    names = json.loads((made / "mask-classes.json").read_text())
    assert list(names) == [str(number) for number in range(10)]
    assert (names["0"], names["4"]) == ("background", "food-drink")


def test_the_same_arguments_give_the_same_bytes(made, tmp_path):
    write(tmp_path / "again", 160, S, 3)
    assert tree(tmp_path / "again") == tree(made)
    assert recipe(3, "train", 0, S) != recipe(4, "train", 0, S)


def test_mistakes_are_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for words, said in (
        ([str(tmp_path / "out"), "--images", "3"], "--images"),
        ([str(tmp_path / "file")], "is a file"),
    ):
        done = CliRunner().invoke(composed.main, words)
        assert done.exit_code == 2
        assert said in done.output
    photographs.cache_clear()
    monkeypatch.setattr(composed, "PHOTOGRAPHS", (("matplotlib", "none.jpg"),))
    done = CliRunner().invoke(composed.main, [str(tmp_path / "out")])
    photographs.cache_clear()
    assert done.exit_code == 2
    assert "this photograph comes with matplotlib; install it" in done.output
