"""Runs of a tiny study from beginning to end: two made-up teachers, 77 images, one pixel size."""

import dataclasses
import json
import lzma
from dataclasses import dataclass, field

import pytest

from benchmarks.study import execute
from benchmarks.study.execute import Study
from benchmarks.study.measure import load_sums
from benchmarks.study.results import read_lines
from benchmarks.study.runs import ONLINE, Run, cache_runs, claim_runs, references
from benchmarks.study.scales import SCALES, Base, Training
from tests.conftest import CNN, VIT
from tests.study.made_up import Labelled
from tests.test_evaluate_tasks import pack
from unic_cache.errors import CacheError, ConfigError
from unic_cache.student.run_files import ENCODER

pytestmark = pytest.mark.slow

TINY = dataclasses.replace(
    SCALES["small"],
    name="tiny",
    teachers=(VIT, CNN),
    start=VIT,
    view_size=32,
    ablation=Base("ablation", images=30, views=2, unseen_views=1),
    small=Training("test_vit", img_size=32, patch_size=16, batch_size=16),
    claim=Base("claim", images=30, views=2, unseen_views=0),
    large=Training("test_vit", img_size=32, patch_size=16, batch_size=16),
    claim_epochs=1,
    head_steps=5,
)
TASKS = {"knn": ["things", "others"], "linear": ["things"], "segmentation": ["things"]}


@dataclass(frozen=True)
class Sets:
    distilled: str
    held_out: str
    labelled: tuple[Labelled, ...] = field(default=())


@pytest.fixture(scope="module")
def sets(tmp_path_factory, shards):
    folder = tmp_path_factory.mktemp("labelled")
    whole, train, test = (
        str(pack(folder / f"{name}/{name}.tar", numbers))
        for name, numbers in (("whole", range(100, 130)), ("train", range(130, 160)), ("test", range(160, 180)))
    )
    things = Labelled("things", "made up", ("knn", "linear", "segmentation"), whole, train, test)
    others = Labelled("others", "made up too", ("knn",), test)
    return Sets(str(shards.folder / "000000.tar"), str(shards.folder / "00000[12].tar"), (things, others))


@pytest.fixture(scope="module")
def study(tmp_path_factory, sets, weights):
    work = tmp_path_factory.mktemp("study")
    return Study(TINY, work, work / "results.jsonl", sets, tuple((name, str(path)) for name, path in weights.items()))


def short(run: Run) -> Run:
    """The run with tasks that the tiny sets have."""
    return dataclasses.replace(
        run, settings={**run.settings, "evaluate": {**run.settings["evaluate"], "tasks": TASKS, "resamples": 100}}
    )


def runs() -> list[Run]:
    teacher, *_, start, _ = references(TINY)
    online, finest, *_, fewest = cache_runs(TINY, 0)
    against = {"against": [[teacher.name, 0], [start.name, 0]]}
    started = dataclasses.replace(claim_runs(TINY, 0)[0], settings={**claim_runs(TINY, 0)[0].settings, **against})
    return [short(run) for run in (teacher, start, online, finest, fewest, started)]


@pytest.fixture(scope="module")
def finished(study):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(execute, "plan", lambda *_: runs())
        assert study.run_all("teachers/") == 1
        assert study.run_all() == 5
        assert study.run_all() == 0
        with pytest.raises(ConfigError, match="no run of the plan begins with 'cash/'"):
            study.run_all("cash/")
    return {line.run: line for line in read_lines(study.results)}


def test_every_run_has_its_line(finished):
    assert list(finished) == [run.name for run in runs()]
    for run in runs():
        assert finished[run.name].settings == json.loads(json.dumps(run.settings))
        assert finished[run.name].seconds > 0


def test_scores_are_in_points_and_losses_as_they_are(finished):
    online = finished[ONLINE].figures["scores"]
    assert 1 < online["knn/things"]["value"] <= 100
    assert online["knn/things"]["low"] <= online["knn/things"]["value"] <= online["knn/things"]["high"]
    assert 0 < online["loss-images/mean"]["value"] < 5
    assert {"loss-views/mean", f"loss-views/{VIT}", f"loss-images/{CNN}", "mean/tasks", "knn/all"} <= set(online)


def test_the_held_out_images_are_all_asked(finished):
    counts = finished[ONLINE].figures["test_images"]
    assert (counts["loss-views/mean"], counts["loss-images/mean"]) == (37, 45)
    assert (counts["knn/things"], counts["knn/all"]) == (30, 50)
    assert (counts["linear/things"], counts["segmentation/things"]) == (20, 20)


def test_a_cache_in_float16_is_one_time_smaller_and_klt_more(finished):
    sizes = [finished[name].figures["bytes"] for name in (ONLINE, "cache/2-views-klt-0.99", "cache/1-views-f16")]
    assert sizes[0]["ratio"] == 1 < sizes[1]["ratio"]
    assert sizes[0]["view"] == sizes[2]["view"] == sum(sizes[0]["teachers"].values())


def test_a_run_is_compared_with_its_reference_and_only_then(finished):
    assert finished[ONLINE].figures["differences"] == {}
    found = finished["cache/1-views-f16"].figures["differences"][ONLINE]
    own, other = (finished[name].figures["scores"] for name in ("cache/1-views-f16", ONLINE))
    assert found["knn/things"]["value"] == pytest.approx(
        own["knn/things"]["value"] - other["knn/things"]["value"], abs=1e-3
    )
    worse = 100 * (own["loss-images/mean"]["value"] / other["loss-images/mean"]["value"] - 1)
    assert found["loss-images/mean"]["value"] == pytest.approx(-worse, abs=1e-2)
    claim = finished["claim/started"].figures["differences"]
    assert set(claim) == {f"teachers/{VIT}", "untrained/started"}
    assert "loss-images/mean" not in claim["untrained/started"]


def test_a_student_that_starts_from_the_teacher_is_the_teacher(finished):
    names = f"teachers/{VIT}", "untrained/started"
    teacher, start = (finished[name].figures["scores"]["knn/things"] for name in names)
    assert start == teacher


def test_a_run_stopped_after_training_does_not_train_again(study, finished):
    out = study.work / "runs" / runs()[2].folder
    before = (out / ENCODER).read_bytes()
    assert study.trained(runs()[2]) == out
    assert (out / ENCODER).read_bytes() == before


def test_a_missing_reference_is_named(study, finished, tmp_path):
    elsewhere = dataclasses.replace(study, results=tmp_path / "results.jsonl")
    with pytest.raises(
        CacheError, match=r"cache-online-0\.npz\.xz: the values per image of this reference run are not th"
    ):
        elsewhere.figures(runs()[4])


def test_damaged_values_are_told(study, tmp_path):
    elsewhere = dataclasses.replace(study, results=tmp_path / "results.jsonl")
    path = elsewhere.values(runs()[2].folder)
    path.parent.mkdir()
    for data in (b"not compressed", lzma.compress(b"no arrays"), lzma.compress(b"cut off")[:-9]):
        path.write_bytes(data)
        with pytest.raises(CacheError, match=r"cache-online-0\.npz\.xz: (damaged|not a readable)"):
            elsewhere.reference(ONLINE, 0, {})


def test_the_values_of_references_lie_beside_the_results_and_of_no_other_run(study, finished):
    kept = {path.name.removesuffix(".npz.xz") for path in (study.results.parent / "values").iterdir()}
    assert kept == {runs()[place].folder for place in (0, 1, 2)}


def test_online_is_a_reference_with_every_seed(study):
    """Combinations of a second seed are compared with that seed's, and are not planned before it has its line."""
    online, *singles = (run for seed in (0, 1) for run in cache_runs(TINY, seed))
    assert study.is_reference(online)
    assert {run.name for run in singles if study.is_reference(run)} == {ONLINE}


def test_losses_of_other_images_are_not_compared(study, finished):
    _, keys = load_sums(study.values(runs()[2].folder))
    keys["loss-images"] = keys["loss-images"][::-1]
    with pytest.raises(CacheError, match="loss-images of cache/online is of other images"):
        study.reference(ONLINE, 0, keys)
