"""What figures draw: the numbers of their data, under names as they are."""

import json
import xml.etree.ElementTree as ET

import pytest

from tests.report.made_up import evaluation, write_run
from unic_cache.evaluate.comparisons import gain_figure, task_figure
from unic_cache.evaluate.curves import Training, coefficient_figure, knn_figure, loss_figure
from unic_cache.evaluate.feature_use import analysed, curve_figure, dimension_figure
from unic_cache.evaluate.results import read_evaluation
from unic_cache.evaluate.run_log import read_records


def words(picture) -> list[str]:
    """All text in a figure."""
    return [
        text.text.strip() for text in ET.fromstring(picture.svg).iter("{http://www.w3.org/2000/svg}text") if text.text
    ]


@pytest.fixture
def read(tmp_path):
    def make(label="small", student="student", **changes):
        text = json.dumps({**evaluation(), **changes}).replace('"student":', json.dumps(student) + ":")
        (tmp_path / f"{label}.json").write_text(text)
        return read_evaluation(tmp_path / f"{label}.json", label)

    return make


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    found = []
    for name, drop in (("with", 0.5), ("_without", 0.0)):
        write_run(folder / name, drop)
        found.append(Training(name, read_records(folder / name / "log.jsonl"), drop))
    return found


def test_gains_are_of_students_alone_and_better_is_positive_for_depth_too(read):
    picture = gain_figure([read()])
    assert picture is not None
    assert "student on k-NN +6.7 %; student on segmentation -20.0 %; student on depth +20.0 %" in picture.alt
    assert "random" not in picture.alt
    assert "Best teachers: k-NN: dino; segmentation: lite; depth: dino." in picture.caption
    assert gain_figure([]) is None


@pytest.mark.parametrize("name", ["_hidden", "a$b$c", "<i>&", "猫"])
def test_names_are_drawn_as_they_are(read, name):
    picture = gain_figure([read(student=name)])
    assert picture is not None
    assert name in words(picture)


def test_files_of_equal_names_are_told_apart_and_equal_teachers_are_one(read):
    both = [read("one"), read("two", student="student")]
    found = words(task_figure(both))
    assert {"one: student", "two: student", "dino", "lite"} <= set(found)
    assert found.count("dino") == 1
    assert task_figure([read(tasks={"knn": evaluation()["tasks"]["knn"]})]) is None


def test_every_run_and_every_teacher_has_its_lines(runs):
    found = words(loss_figure(runs))
    assert {"dino", "lite", "with (dropping 0.5)", "with, held out", "_without (dropping 0)"} <= set(found)
    found = words(coefficient_figure(runs))
    assert {"with: counts in the loss", "with: highest loss", "dino", "lite"} <= set(found)
    held_out = [Training(run.label, [one for one in run.records if one["kind"] == "val"], run.drop) for run in runs]
    assert loss_figure(held_out) is not None
    assert coefficient_figure(held_out) is None  # validation drops no teacher
    picture = knn_figure(runs)
    assert picture is not None
    assert "at the end: with 30.0 %, _without 30.0 %" in picture.alt
    assert loss_figure([]) is coefficient_figure([]) is knn_figure([]) is None


def test_analysis_is_drawn_with_its_numbers_and_one_that_two_files_share_once(read):
    found = words(dimension_figure([read()]))
    assert {"31", "50", "90", "rank 40.2 of 192"} <= set(found)
    assert list(analysed([read("one"), read("two")])) == ["student", "dino"]
    picture = curve_figure([read()])
    assert picture is not None
    assert "128" not in words(picture)
    assert {"1", "2", "student", "20-NN, %"} <= set(words(picture))
    assert dimension_figure([read(analysis={})]) is curve_figure([read(analysis={})]) is None
