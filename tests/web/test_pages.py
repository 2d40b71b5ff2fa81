"""The pages of `report` and `inspect --pictures` in a browser: what they show, in both colour schemes and widths."""

import re

import pytest

from pipelines import inspect, report
from tests.conftest import VIT, Shards
from tests.report.made_up import write_evaluation, write_run
from tests.web.conftest import SCHEMES, WIDTHS
from unic_cache.cache import open_cache
from unic_cache.config import InspectConfig, ReportConfig

PAPER = {"dark": "rgb(21, 23, 28)", "light": "rgb(255, 255, 255)"}
FIGURES = {
    "report": {
        "gains",
        "task-against-task",
        "loss-per-teacher",
        "teacher-coefficients",
        "knn-while-training",
        "patch-token-components",
        "principal-dimensions",
        "weight-and-feature-use",
    },
    "inspect": {"views", "tokens", "token-errors"},
}


@pytest.fixture(scope="session")
def pages(tmp_path_factory, cache_folder, shards: Shards):
    """The page of each command, made once."""
    folder = tmp_path_factory.mktemp("pages")
    inputs = (
        write_run(folder / "dropping"),
        write_run(folder / "a-rather-long-name-of-a-run-without-any-teacher-dropping", drop=0.0),
        write_evaluation(folder / "small.json"),
        write_evaluation(folder / "<b>odd & $name$.json"),
    )
    return {
        "report": report.run(
            ReportConfig(str(folder / "report"), inputs, cache=str(cache_folder), shards=shards.pattern)
        ),
        "inspect": inspect.draw(
            InspectConfig(str(cache_folder), pictures=str(folder / "drawn"), shards=shards.pattern),
            open_cache(cache_folder),
        ),
    }


@pytest.mark.parametrize("command", FIGURES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_figure_is_seen_in_the_colours_of_the_scheme(pages, look, command, scheme):
    for width, seen in look(pages[command], scheme).widths.items():
        assert {figure["name"] for figure in seen["figures"]} == FIGURES[command]
        assert seen["background"] == PAPER[scheme]
        for figure in seen["figures"]:
            assert figure["svg"]["width"] > min(width, 500), figure["name"]
            assert figure["svg"]["height"] > 100, figure["name"]
            assert figure["inks"] == [seen["color"]], figure["name"]
            assert figure["label"], figure["name"]
            assert figure["outside"] == [], figure["name"]
            assert all(image["width"] > 20 and image["height"] > 20 for image in figure["images"])


@pytest.mark.parametrize("command", FIGURES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_is_loaded_and_nothing_is_logged(pages, look, command, scheme):
    seen = look(pages[command], scheme)
    assert seen.console == []
    for one in seen.widths.values():
        assert one["loads"] == ['<link rel="icon" href="data:,">']
        assert all(re.match(r"#|figures/[a-z-]+\.(png|svg)$", link) for link in one["links"])


@pytest.mark.parametrize("command", FIGURES)
def test_no_width_makes_the_page_scroll_sideways(pages, look, command):
    seen = look(pages[command], "light").widths
    assert set(seen) == set(WIDTHS)
    assert {width: one["scrolls"] for width, one in seen.items()} == dict.fromkeys(WIDTHS, 0)


def test_the_table_and_the_names_are_shown_as_they_were_given(pages, look):
    text = look(pages["report"], "light").widths[1400]["text"]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "dino (teacher) 45.0 (43.0 to 47.0) 50.0 (48.0 to 52.0) 0.500 (0.480 to 0.520)" in lines
    assert any("<b>odd & $name$" in line for line in lines)
    gains = next(f for f in look(pages["report"], "light").widths[1400]["figures"] if f["name"] == "gains")
    assert any("<b>odd & $name$: student" in word for word in gains["words"])


def test_the_teachers_are_named_beside_their_maps(pages, look):
    figures = look(pages["inspect"], "light").widths[360]["figures"]
    words = "".join(next(figure for figure in figures if figure["name"] == "tokens")["words"])
    assert VIT.replace("_", "") in words.replace("_", "").replace(" ", "")
