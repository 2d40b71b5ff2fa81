"""Files of `evaluate --json` are read as they were written, and refused if they were not."""

import json

import pytest

from tests.report.made_up import evaluation, write_evaluation
from unic_cache.errors import ConfigError
from unic_cache.evaluate.bootstrap import Interval
from unic_cache.evaluate.results import UNKNOWN, read_evaluation, shown


def test_an_evaluation_is_read_whole(tmp_path):
    write_evaluation(tmp_path / "a.json")
    found = read_evaluation(tmp_path / "a.json", "a")
    assert (found.label, found.images, list(found.tasks)) == ("a", 300, ["knn", "segmentation", "depth"])
    depth = found.tasks["depth"]
    assert (depth.metric, depth.unit, depth.higher_is_better, depth.classes) == ("RMSE", "m", False, 9)
    assert depth.scores["student"].estimate == Interval(0.4, 0.38, 0.42000000000000004)
    over, gain = depth.gains["student"]
    assert (over, round(gain.mean, 6)) == ("dino", 20.0)
    assert found.tasks["segmentation"].scores["student"].per_class == {0: 0.9, 7: 0.123}
    student = found.analysis["student"]
    assert student.summary is not None
    assert student.pruning is not None
    assert student.summary.dimensions == {90: 31, 95: 50, 99: 90}
    assert student.pruning.points == {0: 0.48, 10: 0.47, 90: 0.2}
    assert found.analysis["dino"].components is None


def test_what_the_scores_do_not_say_is_read_too(tmp_path):
    data = evaluation("knn") | {"trained_on": 82, "remarks": [f"x: no run\x1b, so {UNKNOWN}"]}
    (tmp_path / "a.json").write_text(json.dumps(data))
    found = read_evaluation(tmp_path / "a.json", "a")
    seen = "Of the test images, up to 82 were seen in training, without labels"
    assert (found.notes, found.unknown) == ([seen, f"x: no run\\x1b, so {UNKNOWN}"], True)


def edited(**changes):
    data = evaluation("knn")
    for path, value in changes.items():
        *above, last = path.split("__")
        place = data
        for key in above:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "neither a run's folder nor JSON"),
        ("\udcff\x00PNG", "neither a run's folder nor JSON"),
        ("[1, 2]", "JSON, but not of `unic-cache evaluate --json`"),
        ('{"a": 1}', "JSON, but not of `unic-cache evaluate --json`"),
        ('{"encoders": [], "images": 3}', 'has no "tasks"'),
        ('{"tasks": {}, "images": 3}', 'has no "tasks"'),
        (edited(tasks__knn__metric=None), "it lacks 'metric'"),
        (edited(images=None), "it lacks 'images'"),
        (edited(tasks__knn__encoders__dino__value=float("nan")), "nan is not a finite number"),
        (edited(tasks__knn__encoders__dino__low="0.3"), "'0.3' is not a finite number"),
        (edited(tasks__knn__encoders__dino__high=True), "True is not a finite number"),
        (edited(tasks__knn__encoders__dino__kind="pupil"), "an encoder's kind is 'pupil'"),
        (edited(tasks__knn__encoders={}), "a task has no encoder"),
        (edited(tasks__knn__higher_is_better="yes"), "higher_is_better is 'yes'"),
        (edited(tasks__knn__encoders__dino=[]), "damaged or edited"),
        (edited(tasks__knn=3), "damaged or edited"),
        (edited(analysis__student__summary__channels=1.5), "1.5 is not a count"),
        (edited(analysis__student__pruning__half=0.5), "invalid literal"),
    ],
)
def test_anything_else_is_refused_with_the_reason(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"a\.json: ") as raised:
        read_evaluation(path, "a")
    assert message in str(raised.value)


def test_names_are_shown_without_control_characters():
    assert shown("plain <b> é 猫") == "plain <b> é 猫"
    assert shown("a\x1b[31m\n\udcff") == "a\\x1b[31m\\n\\udcff"
