"""Plans: the arithmetic against numbers worked by hand, the measurements against an extraction that is really made."""

import dataclasses
import json
import math
import shlex
import tempfile

import click
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import cli
from pipelines import extract, inspect, plan, verify
from pipelines.extracting import calibrating
from pipelines.planning import step_costs
from pipelines.planning.forecast import FITTED_VIEWS, Costs, Forecast, KeptCost, StudentCost, forecast
from tests.conftest import CNN, VIT, make_shards, tree
from unic_cache.config import CODECS, ExtractConfig, InspectConfig, PlanConfig, VerifyConfig
from unic_cache.errors import CacheError, ConfigError, ShardError
from unic_cache.store.calibrate import FIT_IMAGES, HELD_OUT_IMAGES

BYTES = {"klt": 1_000, "f16": 8_000, "int8": 4_000, "int4": 2_000}
READ = {"klt": 0.002, "f16": 0.0001, "int8": 0.0002, "int4": 0.0005}


def costs(**changes) -> Costs:
    """Two teachers that take 10 and 30 ms a view, and 1 ms each to encode; a student of 100 images a second."""
    kept = [
        KeptCost(name, codec, tokens, size / (2 if tokens else 1), {"patch": 0.99}, 0.001, READ[codec])
        for name in ("a", "b")
        for tokens in (None, 10)
        for codec, size in BYTES.items()
    ]
    steps = (StudentCost(None, 8, 0.01), StudentCost(10, 8, 0.008))
    plain = Costs("cpu", 2, 1_000, 64, 0.005, {"a": 0.01, "b": 0.03}, tuple(kept), steps, 10**9, 1e6)
    return dataclasses.replace(plain, **changes)


def found(codec: str, tokens: int | None = None, views: int = 4, **changes) -> tuple[Forecast, object]:
    result = forecast(PlanConfig(("a", "b"), views=views, epochs=200), costs(**changes))
    return result, next(one for one in result.ways if (one.codec, one.tokens) == (codec, tokens))


class TestArithmetic:
    def test_bytes_are_images_times_views_times_all_teachers(self):
        assert found("klt")[1].bytes_in_all == 1_000 * 4 * 2_000
        assert found("int8", tokens=10)[1].bytes_in_all == 1_000 * 4 * 4_000

    def test_pixels_that_are_kept_count_once_a_view(self):
        _, one = found("klt", pixels_a_view=500.0)
        assert (one.bytes_in_all, one.bytes_to_write) == (1_000 * 4 * 2_500, 1_000 * 4 * 2_500)
        assert one.rate_needed == pytest.approx(100 * 2_500)

    def test_what_the_cache_holds_is_neither_written_nor_made_again(self):
        half = tuple(
            dataclasses.replace(kept, held=0.75) if (kept.teacher, kept.codec) == ("b", "klt") else kept
            for kept in costs().kept
        )
        _, one = found("klt", kept=half, pixels_a_view=500.0, pixels_held=1.0, free_bytes=1_000 * 4 * 1_250)
        assert (one.bytes_in_all, one.bytes_to_write, one.fits) == (1_000 * 4 * 2_500, 1_000 * 4 * 1_250, True)
        assert one.extract_seconds == pytest.approx(1_000 * 4 * (0.011 + 0.25 * 0.031))
        assert one.pays_after == 2  # 4 * 18.75 ms once, 40 ms an epoch with live teachers
        assert found("f16", kept=half)[1].bytes_to_write == 1_000 * 4 * 16_000

    def test_what_was_begun_goes_on_by_its_codec(self):
        kept = tuple(
            dataclasses.replace(k, held=0.1) if (k.teacher, k.codec) == ("a", "f16") else k for k in costs().kept
        )
        result, _ = found("f16", kept=kept)
        assert (result.chosen.codec, result.reason) == ("f16", "as the cache has it already")
        assert forecast(PlanConfig(("a", "b"), codec="int8"), costs(kept=kept)).chosen.codec == "int8"

    def test_calibration_counts_where_there_is_none(self):
        """Of both teachers, then of one; fitting costs by the views that are remembered whole."""
        assert FITTED_VIEWS == FIT_IMAGES + HELD_OUT_IMAGES
        before = found("klt")[1]
        for views, new in ((2_000, {"a": 0.002, "b": 0.004}), (300, {"b": 0.004})):
            kept = [dataclasses.replace(one, fit_seconds=0.1) for one in costs().kept]
            one = found("klt", kept=tuple(kept), calibrated_views=views, count_seconds=new)[1]
            each = {"a": 0.01 + 0.002, "b": 0.03 + 0.004}
            expected = sum(views * each[name] + min(views, FITTED_VIEWS) * 0.1 for name in new)
            assert one.extract_seconds - before.extract_seconds == pytest.approx(expected)
            assert one.cached_seconds - before.cached_seconds == pytest.approx(expected)

    def test_extraction_is_forward_and_encoding_once_a_view(self):
        assert found("klt")[1].extract_seconds == pytest.approx(1_000 * 4 * (0.04 + 0.002))

    def test_the_student_eats_its_images_times_their_bytes(self):
        assert found("f16")[1].rate_needed == pytest.approx(100 * 16_000)
        assert found("f16", tokens=10)[1].rate_needed == pytest.approx(125 * 8_000)

    @pytest.mark.parametrize(
        ("codec", "disk", "feeds"),
        [
            ("klt", 1e6, 250),  # 4 ms to decode against 2 ms to read
            ("f16", 1e6, 62.5),  # 0.2 ms to decode against 16 ms to read
            ("f16", None, 5_000),  # nobody knows the disk
        ],
    )
    def test_the_slower_of_disk_and_decoding_feeds(self, codec, disk, feeds):
        _, one = found(codec, disk_rate=disk)
        assert one.feeds == pytest.approx(feeds)
        assert one.keeps_up == (feeds >= 100)

    @pytest.mark.parametrize(
        ("codec", "views", "epochs"),
        [
            ("klt", 4, 5),  # 4 * 42 ms once, 40 ms an epoch with live teachers: 4.2 epochs
            ("klt", 20, 21),  # 20 * 42 / 40 = 21 just
            ("f16", 4, 5),  # the student waits 6 ms an image: 168 / 34 = 4.94
            ("f16", 8, 10),  # 336 / 34 = 9.88
        ],
    )
    def test_a_cache_pays_after_extraction_over_what_an_epoch_saves(self, codec, views, epochs):
        assert found(codec, views=views)[1].pays_after == epochs

    def test_a_cache_that_is_read_more_slowly_than_teachers_answer_never_pays(self):
        _, one = found("f16", disk_rate=16_000 / 0.05)  # waits 40 ms an image, and the teachers take 40
        assert one.pays_after is None

    def test_whole_runs_compare_all_epochs(self):
        _, one = found("f16")
        assert one.online_seconds == pytest.approx(200 * 1_000 * (0.01 + 0.04))
        assert one.cached_seconds == pytest.approx(1_000 * 4 * 0.042 + 200 * 1_000 * (0.01 + 0.006))


class TestChoice:
    @pytest.mark.parametrize(
        ("changes", "asked", "codec", "reason"),
        [
            ({}, {}, "klt", "the smallest that keeps up"),  # the disk gives 1 MB/s, int4 would do with 0.4
            ({"disk_rate": 3e5}, {}, "klt", "the smallest that keeps up"),  # only klt's 0.2 MB/s are to be had
            ({"kept": "klt reads in 20 ms"}, {}, "int4", "the smallest that keeps up"),
            ({"disk_rate": 1e4}, {}, "klt", "this one comes closest"),
            ({"kept": "klt reads in 20 ms", "disk_rate": 3e5}, {}, "int4", "this one comes closest"),
            ({"free_bytes": 20_000_000, "kept": "klt reads in 20 ms"}, {}, "int4", "the smallest that keeps up"),
            ({"free_bytes": 10_000_000, "kept": "klt reads in 20 ms"}, {}, "klt", "this one comes closest"),
            ({"free_bytes": 1_000}, {}, "klt", "none fits on the disk"),
            ({"free_bytes": None, "disk_rate": None}, {}, "klt", "the smallest that keeps up"),
            ({}, {"codec": "f16"}, "f16", "as asked"),
        ],
    )
    def test_is_the_smallest_that_fits_and_feeds(self, changes, asked, codec, reason):
        if "kept" in changes:
            slow = (
                dataclasses.replace(k, read_seconds=0.01 if k.codec == "klt" else k.read_seconds) for k in costs().kept
            )
            changes = {**changes, "kept": tuple(slow)}
        result = forecast(PlanConfig(("a", "b"), **asked), costs(**changes))
        assert (result.chosen.codec, result.chosen.tokens) == (codec, None)
        assert reason in result.reason

    @pytest.mark.parametrize(
        ("asked", "read_seconds", "begun", "coder", "reason"),
        [
            ({}, 0.004, "", "pcodec", "the smallest that keeps up"),
            ({}, 0.006, "", "zstd", "the smallest that keeps up"),
            ({"coder": "pcodec"}, 0.006, "", "pcodec", "as asked"),
            ({"coder": "zstd"}, 0.004, "", "zstd", "as asked"),
            ({"codec": "klt"}, 0.004, "", "pcodec", "the smallest that keeps up"),
            ({"codec": "klt"}, 0.006, "", "zstd", "the smallest that keeps up"),
            ({"codec": "klt"}, 0.004, "zstd", "zstd", "as the cache has it already"),
            ({}, 0.006, "pcodec", "pcodec", "as the cache has it already"),
        ],
    )
    def test_the_smaller_coder_is_chosen_if_it_keeps_up(self, asked, read_seconds, begun, coder, reason):
        """Two teachers for a student of 10 ms an image."""
        kept = costs().kept
        small = (
            dataclasses.replace(k, bytes_a_view=0.8 * k.bytes_a_view, read_seconds=read_seconds, coder="pcodec")
            for k in kept
            if k.codec == "klt"
        )
        every = [dataclasses.replace(k, held=0.5 * (begun == k.coder)) for k in (*kept, *small) if k.codec == "klt"]
        result = forecast(PlanConfig(("a", "b"), **asked), costs(kept=tuple(every)))
        assert result.chosen.coder == coder
        assert reason in result.reason
        assert ("--coder" in result.command) == (coder == "pcodec" or "coder" in asked)

    def test_tokens_are_those_that_were_asked_for(self):
        result = forecast(PlanConfig(("a", "b"), tokens=10), costs())
        assert result.chosen.tokens == 10

    def test_tokens_of_teachers_without_a_grid_change_nothing(self):
        kept = tuple(one for one in costs().kept if one.tokens is None)
        asked, free = (forecast(PlanConfig(("a", "b"), tokens=tokens), costs(kept=kept)) for tokens in (10, None))
        assert (asked.chosen, asked.command) == (free.chosen, free.command)

    def test_the_command_is_read_as_the_extraction_that_was_planned(self):
        config = PlanConfig(
            ("a", "b"), weights=(("a", "one file"), ("b", "w.pth")), shards="x/{0..3}.tar", cache="c", views=2,
            size=128, codec="klt", quality=0.98, tokens=10, sampling="random", device="cpu",
            dtype="bfloat16", threads=3, images=50, crop_scale=(0.25, 1.0),
        )  # fmt: skip
        words = forecast(config, costs()).command
        with click.Context(cli.extract) as context:
            cli.extract.parse_args(context, shlex.split(shlex.join(words)))
            made = ExtractConfig(**context.params)
        fields = {field.name for field in dataclasses.fields(ExtractConfig)}
        assert dataclasses.asdict(made) == {k: v for k, v in dataclasses.asdict(config).items() if k in fields}

    def test_the_command_samples_by_a_rule_only_if_it_samples(self):
        config = PlanConfig(("a", "b"), sampling="lattice")
        assert "--sampling" not in forecast(config, costs()).command
        assert forecast(dataclasses.replace(config, tokens=10), costs()).command[-2:] == ("--sampling", "lattice")

    def test_the_command_names_the_codec_and_leaves_defaults_out(self):
        words = forecast(PlanConfig(("a",), quality=0.98), costs()).command
        assert words == ("--teacher", "a", "--codec", "klt", "--quality", "0.98")
        slow = tuple(dataclasses.replace(kept, read_seconds=1 if kept.codec == "klt" else 0) for kept in costs().kept)
        assert forecast(PlanConfig(("a",), quality=0.98), costs(kept=slow)).command == (
            "--teacher", "a", "--codec", "int4",
        )  # fmt: skip


@pytest.fixture(scope="module")
def config(settings, tmp_path_factory):
    plain = settings(tmp_path_factory.mktemp("plan") / "cache", codec=None)
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    return PlanConfig(**fields, images=64, student="test_vit", img_size=32, patch_size=16, epochs=20)


@pytest.fixture(scope="module")
def planned(config) -> Forecast:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_costs, "FILE_BYTES", 2**23)
        return plan.run(config)


class TestMeasurements:
    def test_every_teacher_is_kept_by_every_codec_with_all_tokens_and_with_a_sample(self, planned):
        measured = {(kept.teacher, kept.codec, kept.coder, kept.tokens) for kept in planned.costs.kept}
        stored_as = [*((codec, "zstd") for codec in CODECS), ("klt", "pcodec")]
        assert measured == {(name, *one, tokens) for name in (VIT, CNN) for one in stored_as for tokens in (None, 1)}
        assert planned.costs.images == 82
        assert planned.costs.probe == 64
        assert all(seconds > 0 for seconds in planned.costs.forward_seconds.values())
        assert all(kept.read_seconds > 0 and kept.encode_seconds > 0 for kept in planned.costs.kept)
        assert [step.tokens for step in planned.costs.student] == [None, 1]
        assert {kept.sampling for kept in planned.costs.kept if kept.tokens} == {"lattice"}

    @pytest.mark.parametrize("codec", ["f16", "int8", "int4", "klt"])
    def test_bytes_and_fidelity_are_those_of_an_extraction(self, planned, settings, tmp_path, codec):
        extract.run(settings(tmp_path / "cache", codec=codec, views=1))
        made = inspect.run(InspectConfig(str(tmp_path / "cache")))["teachers"]
        for name in (VIT, CNN):
            kept = next(k for k in planned.costs.kept if (k.teacher, k.codec, k.tokens) == (name, codec, None))
            assert kept.bytes_a_view == pytest.approx(
                made[name]["bytes_per_image"], rel=0.3 if codec == "klt" else 0.05
            )
            assert kept.fidelity["patch"] == pytest.approx(made[name]["calibration"]["fidelity"]["patch"], abs=0.003)

    def test_nothing_is_left(self, config, planned, monkeypatch, tmp_path):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        (tmp_path / "cache").mkdir()
        monkeypatch.setattr(step_costs, "FILE_BYTES", 2**23)
        plan.run(
            dataclasses.replace(
                config, images=10, cache=str(tmp_path / "cache"), teachers=(VIT,), weights=config.weights[:1]
            )
        )
        assert not tree(tmp_path)

    def test_kept_views_serve_where_there_are_no_tars(self, config, planned, settings, tmp_path):
        extract.run(settings(tmp_path / "cache", teachers=(), weights=(), keep_views=True, views=1))
        few = {"teachers": (VIT,), "weights": config.weights[:1], "shards": None}
        result = plan.run(dataclasses.replace(config, cache=str(tmp_path / "cache"), **few))
        ours, theirs = (
            {(k.codec, k.tokens): k.fidelity["cls"] for k in found.costs.kept if k.teacher == VIT}
            for found in (result, planned)
        )
        assert ours == pytest.approx(theirs, abs=1e-6)

    @pytest.mark.parametrize("pixel_codec", ["raw", "compact"])
    @pytest.mark.slow
    def test_what_the_cache_holds_is_counted_in_its_own_codec_alone(self, config, settings, tmp_path, pixel_codec):
        kept = {"keep_views": True, "pixel_codec": pixel_codec, "codec": "int8"}
        extract.run(settings(tmp_path / "cache", teachers=(VIT,), weights=config.weights[:1], views=1, **kept))
        plain = {**kept, "codec": None, "cache": str(tmp_path / "cache"), "teachers": (VIT,)}
        result = plan.run(dataclasses.replace(config, weights=config.weights[:1], views=2, **plain))
        assert {k.codec: k.held for k in result.costs.kept if k.tokens is None} == {
            codec: 0.5 if codec == "int8" else 0.0 for codec in CODECS
        }
        assert result.costs.pixels_held == 0.5
        assert (result.chosen.codec, result.reason) == ("int8", "as the cache has it already")
        unsaid = plan.run(
            dataclasses.replace(config, weights=config.weights[:1], views=2, **plain | {"pixel_codec": None})
        )
        assert unsaid.costs.pixels_a_view == result.costs.pixels_a_view
        assert unsaid.costs.pixels_held == 0.5
        made = inspect.run(InspectConfig(str(tmp_path / "cache")))["kept_views"]["bytes_per_image"]
        assert result.costs.pixels_a_view == pytest.approx(made, rel=0.05)

    def test_an_object_store_has_no_disk_to_measure(self, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        from unic_cache.files.schemes import open_location

        assert step_costs.disk(open_location("s3://bucket/cache")) == (None, None)

    def test_a_full_memory_ends_the_search_for_a_larger_batch(self):
        import torch

        def step(batch: int) -> float:
            if batch > 16:
                raise torch.OutOfMemoryError
            return batch / 1000

        assert step_costs.largest_batch(step) == (16, 0.016)
        assert step_costs.largest_batch(lambda batch: batch / 10) == (8, 0.8)
        assert step_costs.largest_batch(lambda batch: 0.0)[0] == 256


class TestRefusals:
    def test_of_no_teacher(self, config):
        with pytest.raises(ConfigError, match="no teacher: name at least one"):
            plan.run(dataclasses.replace(config, teachers=(), keep_views=True))

    def test_of_a_student_that_is_none_come_before_the_work(self, config):
        with pytest.raises(ConfigError, match="timm knows no model 'vit_smal'"):
            plan.run(dataclasses.replace(config, student="vit_smal"))

    def test_of_more_tokens_than_a_teacher_has(self, config):
        with pytest.raises(CacheError, match=r"has 4 patch tokens, and 5 are to be kept; say fewer with --tokens"):
            plan.run(dataclasses.replace(config, tokens=5))

    def test_of_other_tars_under_the_names_of_a_begun_cache(self, config, settings, tmp_path):
        """As extract refuses them: what the cache holds is not of these."""
        extract.run(settings(tmp_path / "cache", views=1))
        other = make_shards(tmp_path / "other", (50,)).pattern
        begun = dataclasses.replace(config, cache=str(tmp_path / "cache"))
        with pytest.raises(CacheError, match="was made with other shards: 000000 has 50 samples here and 37 there"):
            plan.run(dataclasses.replace(begun, shards=other))
        with pytest.raises(ShardError, match="two shards are called '000000'"):
            plan.run(dataclasses.replace(begun, shards=f"{config.shards}::{other}"))
        swapped = tuple(
            (name, str(tmp_path / f"{number}.safetensors")) for number, (name, _) in enumerate(config.weights)
        )
        for (name, path), (_, source) in zip(swapped, config.weights, strict=True):
            state = load_file(source)
            save_file({key: value * 2 for key, value in state.items()} if name == VIT else state, path)
        with pytest.raises(CacheError, match=r"timm.test_vit@32 was made with other weights"):
            plan.run(dataclasses.replace(begun, weights=swapped))

    def test_of_an_odd_trial(self):
        with pytest.raises(ConfigError, match="images 3 is out of bounds; choose 10 or more"):
            PlanConfig(("a",), images=3)


def test_tables_and_sentences_fit_80_columns_and_say_what_matters(planned, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    plan.show(planned)
    lines = capsys.readouterr().out.splitlines()
    sentences = "codec ", "the study"
    tables = [line for line in lines if any(f" {c} " in line for c in CODECS) and not line.startswith(sentences)]
    assert len(tables) == 3 * 2 * 5
    assert max(map(len, tables)) <= 80
    text = "\n".join(lines)
    for said in ("82 images, 2 views of each", "device-hours", "core-hours", "images/s with all tokens", "GB free"):
        assert said in text
    assert "20 epochs: " in text
    assert lines[-1].startswith("the study, against new views and f16 in every epoch: 2 views worse")


class TestCommand:
    @pytest.fixture
    def arguments(self, tmp_path, weights, shards):
        named = ["--teacher", VIT, "--weights", str(weights[VIT]), "--shards", shards.pattern, "--size", "32"]
        few = ["--images", "10", "--views", "1", "--student", "test_vit", "--img-size", "32", "--patch-size", "16"]
        return ["plan", *named, *few, "--cache", str(tmp_path / "cache"), "--batch-size", "16"]

    @pytest.fixture(autouse=True)
    def quickly(self, monkeypatch, planned):
        """What was measured already, and few images to calibrate by."""
        monkeypatch.setattr(plan, "run", lambda config: forecast(config, planned.costs))
        honest = calibrating.calibration_images
        monkeypatch.setattr(calibrating, "calibration_images", lambda cache, count: honest(cache, 40))

    @pytest.mark.parametrize(
        ("terminal", "answer", "starts"), [(False, "y\n", False), (True, "n\n", False), (True, "y\n", True)]
    )
    def test_asks_on_a_terminal_alone(self, arguments, monkeypatch, tmp_path, terminal, answer, starts):
        monkeypatch.setattr(cli, "on_terminal", lambda: terminal)
        done = CliRunner().invoke(cli.main, arguments, input=answer)
        assert done.exit_code == 0, done.output
        assert f"unic-cache extract --teacher {VIT}" in done.output
        assert ("start it now? [y/N]" in done.output) == terminal
        assert (tmp_path / "cache").exists() == starts
        assert ("82 views of 3 units extracted" in done.output) == starts

    def test_yes_starts_without_asking_and_what_it_makes_is_whole(self, arguments, tmp_path):
        done = CliRunner().invoke(cli.main, [*arguments, "--yes"])
        assert done.exit_code == 0, done.output
        assert "start it now?" not in done.output
        assert verify.run(VerifyConfig(str(tmp_path / "cache"))).state == "whole"

    def test_json_is_for_programs_and_asks_nothing(self, arguments, monkeypatch, tmp_path, planned):
        monkeypatch.setattr(cli, "on_terminal", lambda: True)
        done = CliRunner().invoke(cli.main, [*arguments, "--json"])
        data = json.loads(done.stdout)
        assert data["command"].startswith("unic-cache extract --teacher ")
        assert data["chosen"] in data["ways"]
        assert len(data["costs"]["kept"]) == len(planned.costs.kept)
        assert math.isfinite(data["chosen"]["extract_seconds"])
        assert not (tmp_path / "cache").exists()

    def test_json_and_yes_are_refused(self, arguments):
        done = CliRunner().invoke(cli.main, [*arguments, "--json", "--yes"])
        assert done.exit_code == 2
        assert "leave out --yes" in done.output

    def test_an_extraction_that_fails_is_told_as_extract_tells_it(self, arguments, shards):
        elsewhere = [word.replace(shards.pattern, "nowhere/*.tar") for word in arguments]
        done = CliRunner().invoke(cli.main, [*elsewhere, "--yes"])
        assert done.exit_code == 1
        assert "Error: no shard" in done.output
        assert "Traceback" not in done.output
