"""The study's plan: every run can be done as it stands, after the runs that it is compared with."""

import dataclasses
import json

import pytest

from benchmarks.study.__main__ import claim_folder
from benchmarks.study.runs import ONLINE, STARTS, Kept, plan
from benchmarks.study.scales import SCALES
from tests.study.made_up import lines_of
from unic_cache.config import DistillConfig, EvaluateConfig, ExtractConfig, RecodeConfig
from unic_cache.errors import ConfigError
from unic_cache.student.backbone import encoder_spec

SMALL = SCALES["small"]


@pytest.fixture(params=SCALES.values(), ids=SCALES)
def scale(request):
    return request.param


def test_each_run_has_one_name_and_seed(scale):
    runs = [(run.name, run.seed) for run in plan(scale, lines_of(scale))]
    assert len(set(runs)) == len(runs)
    assert len({run.folder for run in plan(scale)}) == len(plan(scale))


def test_references_come_before_the_runs_that_are_compared_with_them(scale):
    done = set()
    for run in plan(scale, lines_of(scale)):
        assert done.issuperset(run.against), run.name
        done.add((run.name, run.seed))


def test_each_student_of_the_claim_is_compared_with_itself_untrained(scale):
    by_name = {run.name: run for run in plan(scale)}
    for name, start in STARTS.items():
        assert by_name[name].against[-1] == (start, 0)
        assert by_name[start].settings["untrained"]["init"] == by_name[name].settings["distill"].get("init")


def test_settings_survive_json(scale):
    for run in plan(scale):
        assert json.loads(json.dumps(run.settings)) == run.settings


def test_the_stages_accept_every_setting(scale):
    for run in plan(scale, lines_of(scale)):
        evaluate = run.settings["evaluate"]
        EvaluateConfig(encoder=("x",), shards="x", task=tuple(evaluate["tasks"]), head_steps=evaluate["head_steps"])
        if "distill" not in run.settings:
            continue
        images, kept = run.settings["images"], Kept(**run.settings["cache"])
        ExtractConfig(teachers=tuple(images["teachers"]), views=images["views"] + 1, size=images["size"])
        RecodeConfig("a", "b", codec=kept.codec, quality=kept.quality, tokens=kept.tokens, sampling=kept.sampling)
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in run.settings["distill"].items()}
        config = DistillConfig(**options)
        encoder_spec(config.student, config.img_size, config.patch_size)
        assert config.views <= images["views"]
        assert set(config.teachers) <= set(scale.teachers)


def test_runs_of_a_part_take_equally_many_steps(scale):
    for part in ("cache/", "paper/", "claim/"):
        runs = [run.settings for run in plan(scale) if run.name.startswith(part)]
        steps = {(one["images"]["images"], one["distill"]["epochs"], one["distill"]["batch_size"]) for one in runs}
        assert len(steps) == 1, part


def test_a_scale_asks_for_no_more_images_than_there_are(scale):
    packed = 6_525  # by `python -m benchmarks.study.sets`, held-out images apart
    assert max(scale.ablation.images, scale.claim.images) <= scale.images <= packed


def test_online_sees_each_view_once(scale):
    online = next(run.settings for run in plan(scale) if run.name == ONLINE)
    assert online["distill"]["epochs"] == online["distill"]["views"] == online["images"]["views"]
    assert online["cache"] == Kept().to_json()


def test_nothing_is_combined_before_all_single_changes_have_lines():
    lines = lines_of(SMALL)
    without = [line for line in lines if line.run != "cache/5-views-f16"]
    assert len(plan(SMALL, lines)) == len(plan(SMALL)) + 6 * len(SMALL.seeds)
    assert len(plan(SMALL, without)) == len(plan(SMALL))


def test_what_held_is_combined_at_two_numbers_of_views():
    worse = {"cache/1-views-f16": -5.0, "cache/24-views-klt-0.80": -5.0, "cache/24-views-klt-0.99-cls-0.96": -5.0}
    single = {run.name for run in plan(SMALL)}
    new = [run.name for run in plan(SMALL, lines_of(SMALL, worse)) if run.name not in single]
    kept = ("klt-0.90-cls-0.99-lattice-16", "klt-0.90-cls-0.99", "klt-0.90")
    assert new == [f"cache/{views}-views-{name}" for name in kept for views in (5, 10)] * len(SMALL.seeds)


def test_what_is_combined_is_no_single_change_again():
    names = [run.name for run in plan(SMALL, lines_of(SMALL)) if run.seed == 0]
    assert len(names) == len(set(names))
    single = {run.name for run in plan(SMALL)}
    worse = {f"cache/24-views-klt-{quality:.2f}": -5.0 for quality in (0.99, 0.96, 0.90, 0.80)}
    worse["cache/10-views-f16"] = -5.0
    new = {run.name for run in plan(SMALL, lines_of(SMALL, worse))} - single
    assert new == {"cache/5-views-f16-lattice-16"}
    worse["cache/24-views-f16-lattice-16"] = -5.0
    new = {run.name for run in plan(SMALL, lines_of(SMALL, worse))} - single
    assert new == {"cache/5-views-f16-random-16"}
    worse["cache/24-views-f16-random-16"] = -5.0
    assert {run.name for run in plan(SMALL, lines_of(SMALL, worse))} == single


def test_what_cannot_be_told_apart_is_not_combined():
    unsure = [
        dataclasses.replace(
            line,
            figures={
                **line.figures,
                "differences": {
                    name: {one: {"value": 0.0, "low": -3.0, "high": 3.0} for one in found}
                    for name, found in line.figures["differences"].items()
                },
            },
        )
        for line in lines_of(SMALL)
    ]
    assert len(plan(SMALL, unsure)) == len(plan(SMALL))


def test_a_folder_serves_one_scale(tmp_path):
    claim_folder(tmp_path / "work", "small")
    claim_folder(tmp_path / "work", "small")
    with pytest.raises(ConfigError, match="holds the study at scale small; give --work another folder for scale full"):
        claim_folder(tmp_path / "work", "full")
