"""Whose weights a file is, what is said of them, and what provenance may claim."""

import dataclasses
import json
import shutil

import click
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import cli
from pipelines import provenance
from pipelines.command.flags import named_file, named_value
from pipelines.extracting.opening_options import TeacherOptions
from pipelines.extracting.teacher_weights import (
    chosen_spec,
    claimed,
    files_of,
    load_teachers,
    normalization,
    normalization_text,
)
from pipelines.planning.forecast import Way, command
from tests.conftest import CNN, VIT
from unic_cache.cache import open_cache
from unic_cache.config import ExtractConfig, PlanConfig
from unic_cache.errors import ConfigError
from unic_cache.teachers.catalog import PUBLISHED, resolve

CPU = torch.device("cpu")


def specs(*names: str):
    return {name: resolve(name) for name in names}


class TestWhoseFile:
    def test_a_path_with_an_equals_sign_is_a_path(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "lr=0.1").mkdir()
        (tmp_path / "lr=0.1" / "w.pth").write_bytes(b"x")
        (tmp_path / "a=b.pth").write_bytes(b"x")
        assert named_file("lr=0.1/w.pth") == ("", "lr=0.1/w.pth")
        assert named_file("a=b.pth") == ("", "a=b.pth")
        assert named_file("runs/lr=1/none.pth") == ("", "runs/lr=1/none.pth")  # no teacher's name has a '/'
        assert named_file("dino=lr=0.1/w.pth") == ("dino", "lr=0.1/w.pth")
        assert named_file("timm:test_vit@32=w.pth") == ("timm:test_vit@32", "w.pth")
        assert named_file("w.pth") == ("", "w.pth")

    def test_a_text_that_may_be_both_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("dino=w.pth", "w.pth"):
            (tmp_path / name).write_bytes(b"x")
        with pytest.raises(click.UsageError, match=r"both dino=w\.pth and w\.pth are files; write \./dino=w\.pth or"):
            named_file("dino=w.pth")
        assert named_file("./dino=w.pth") == ("", "./dino=w.pth")
        assert named_file("dino=./w.pth") == ("dino", "./w.pth")

    def test_a_file_without_a_name_is_of_the_only_one_that_needs_one(self):
        assert files_of([("", "w.pth")], specs("dino")) == {"dino": "w.pth"}
        assert files_of([("", "w.pth")], specs("dino", "ibot", "vit-s-saliency")) == {"ibot": "w.pth"}
        assert files_of([("dino", "d.pth"), ("", "w.pth")], specs("dino", "deit3")) == {
            "dino": "d.pth",
            "deit3": "w.pth",
        }

    @pytest.mark.parametrize(
        ("weights", "names", "message"),
        [
            ([("", "w.pth")], ("ibot", "dbot-ft"), r"fits one teacher only, and 2 need one \(ibot, dbot-ft\)"),
            ([("", "w.pth")], ("dino", "deit3"), r"fits one teacher only, and none of dino, deit3 needs one"),
            ([("dino", "a"), ("", "b")], ("dino",), r"every teacher has a file already"),
            ([("dino", "a"), ("dino", "b")], ("dino",), r"--weights are given twice for dino: a and b"),
            ([("", "a"), ("", "b")], ("dino",), r"--weights are given twice for dino: a and b"),
            ([("dino", "a")], ("dino@96",), r"which no --teacher names: dino@96; did you mean dino@96=a\?"),
        ],
    )
    def test_what_cannot_be_told_is_refused(self, weights, names, message):
        with pytest.raises(ConfigError, match=message):
            files_of(weights, specs(*names))


class TestNormalization:
    def test_mean_and_std_in_force_can_be_set_and_are_the_specs(self, weights):
        config = ExtractConfig((VIT,), weights=((VIT, str(weights[VIT])),), normalize=((VIT, "0.1,0.2,0.3/0.5"),))
        (teacher,) = load_teachers(config, CPU).values()
        assert (teacher.spec.mean, teacher.spec.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
        assert normalization(normalization_text(teacher.spec.to_json())) == (teacher.spec.mean, teacher.spec.std)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("0.5", "is not MEAN/STD"),
            ("a,b,c/1", "is not MEAN/STD"),
            ("0.5,0.5/0.5", "is not MEAN/STD"),
            ("0.5/0", "out of bounds"),
            ("nan/0.5", "out of bounds"),
            (
                "123.675,116.28,103.53/58.395,57.12,57.375",
                r"for 0 to 255 say 0\.485,0\.456,0\.406/0\.229,0\.224,0\.225",
            ),
        ],
    )
    def test_numbers_of_another_range_are_refused(self, text, message):
        with pytest.raises(ConfigError, match=message):
            normalization(text)

    def test_settings_are_found_by_the_name_that_was_given(self):
        config = ExtractConfig(("dino@224",), normalize=(("dino@224", "0.5/0.5"),), positions=(("", "timm"),))
        spec = chosen_spec(config, "dino@224")
        assert (spec.name, spec.mean, spec.position_rule) == ("dino", (0.5, 0.5, 0.5), "timm")

    def test_settings_of_no_teacher_are_refused(self):
        for field, value in (("normalize", "0.5/0.5"), ("positions", "timm"), ("licence", "MIT"), ("source", "x")):
            config = ExtractConfig((VIT,), **{field: (("dino", value),)})
            with pytest.raises(ConfigError, match=rf"--{field} names 'dino', which no --teacher names"):
                load_teachers(config, CPU)
        with pytest.raises(ConfigError, match=r"--positions 'cubic' is unknown; choose from timm, bicubic"):
            load_teachers(ExtractConfig((VIT,), positions=((VIT, "cubic"),)), CPU)

    def test_values_have_names_in_front_or_none(self):
        assert named_value("dino=MIT") == ("dino", "MIT")
        assert named_value("dino+cls=none=MIT") == ("dino+cls=none", "MIT")
        assert named_value("dino@96+cls=none,patch=block:8=a=b") == ("dino@96+cls=none,patch=block:8", "a=b")
        assert named_file("dino+patch=raw-block:3=lr=1/w.pth") == ("dino+patch=raw-block:3", "lr=1/w.pth")
        assert named_value("see https://example.org/?a=b") == ("", "see https://example.org/?a=b")


class TestClaims:
    def test_weights_by_file_claim_nothing_that_nobody_said(self, cache_folder, settings):
        spec = json.loads((cache_folder / VIT.replace(":", ".") / "spec.json").read_text())
        assert spec["provenance"]["source"] == "file"
        assert spec["provenance"]["licence"] == "licence unknown, weights by file"
        assert spec["provenance"]["published"] == "not stated; weights by file test_vit.safetensors"
        assert len(spec["provenance"]["weights_file_sha256"]) == 64
        shown = provenance.of_cache(str(cache_folder))["teachers"][VIT]
        assert "apache" not in json.dumps([shown[key] for key in ("about", "source", "published", "licence")]).lower()

    def test_the_licence_and_the_source_that_are_said_are_recorded(self, weights):
        config = ExtractConfig(
            (VIT, CNN),
            weights=tuple((name, str(path)) for name, path in weights.items()),
            licence=(("", "MIT"), (CNN, "CC-BY-4.0")),
            source=((VIT, "https://example.org/v1"),),
        )
        found = {name: teacher.spec for name, teacher in load_teachers(config, CPU).items()}
        assert (found[VIT].licence, found[VIT].published) == ("MIT", "https://example.org/v1")
        assert (found[CNN].licence, found[CNN].published) == (
            "CC-BY-4.0",
            "not stated; weights by file test_efficientnet.safetensors",
        )

    def test_the_published_tensors_by_another_file_keep_their_claims(self):
        own = resolve("efficientnet-lite0@64")
        same = dataclasses.replace(own, weights_sha256=PUBLISHED["efficientnet-lite0"])
        assert claimed(same, "lite0.safetensors", None, None).licence == "Apache-2.0"
        other = dataclasses.replace(own, weights_sha256="00")
        assert claimed(other, "lite0.safetensors", None, None).licence.startswith("licence unknown")

    def test_what_the_catalog_says_of_a_file_is_called_that(self):
        found = claimed(resolve("ibot"), "/x/my.pth", None, None)
        assert found.licence == "Apache-2.0 by the catalog, weights by file"
        assert found.published.startswith("weights by file my.pth; the catalog names https://github.com/bytedance/ibot")
        assert claimed(resolve("dino"), None, None, None) == resolve("dino")


class TestExtract:
    @pytest.fixture
    def run(self, shards, weights, cache_folder, tmp_path):
        shutil.copytree(cache_folder, tmp_path / "cache")
        fixed = ["--shards", shards.pattern, "--cache", str(tmp_path / "cache"), "--size", "32", "--batch-size", "16"]

        def call(*arguments):
            words = ["extract", "--teacher", VIT, *fixed, "--codec", "f16", "--views", "1", *map(str, arguments)]
            return CliRunner().invoke(cli.main, words, catch_exceptions=False)

        return call

    def test_one_line_says_what_runs(self, run, weights):
        done = run("--weights", weights[VIT])
        assert done.exit_code == 0
        line = next(line for line in done.stderr.splitlines() if line.startswith(f"teacher {VIT}: "))
        assert "test_vit.r160_in1k at 32 px, mean/std 0.5,0.5,0.5/0.5,0.5,0.5" in line
        assert str(weights[VIT]) in line
        assert "sha256 " in line
        assert "licence unknown" in line

    def test_other_weights_are_called_that(self, run, weights, tmp_path):
        state = load_file(weights[VIT])
        torch.save({**state, "norm.bias": state["norm.bias"] + 1}, tmp_path / "other.pth")
        done = run("--weights", tmp_path / "other.pth")
        assert done.exit_code == 1
        assert "was made with other weights: teacher.weights_sha256" in done.stderr

    def test_another_normalization_is_another_teacher(self, run, weights):
        done = run("--weights", weights[VIT], "--normalize", "0.4/0.2")
        assert done.exit_code == 1
        assert "was made with teacher.mean [0.5, 0.5, 0.5], not [0.4, 0.4, 0.4]" in done.stderr

    def test_a_licence_that_comes_late_is_told_and_the_record_stays(self, run, weights, tmp_path):
        done = run("--weights", weights[VIT], "--licence", "MIT")
        assert done.exit_code == 0
        assert "keeps licence 'licence unknown" in done.stderr
        assert open_cache(tmp_path / "cache").teachers[VIT].spec["provenance"]["licence"].startswith("licence unknown")


def test_a_rule_of_positions_that_changes_nothing_is_told(capsys):
    name = "efficientnet-lite0@64"
    load_teachers(TeacherOptions((name,), positions=(("", "bicubic"),)), CPU)
    assert f"--positions {name}=bicubic changes nothing: the network has no table of" in capsys.readouterr().err
    load_teachers(TeacherOptions((name,), positions=((name, "timm"),)), CPU)  # its own, as `verify` says it
    assert "--positions" not in capsys.readouterr().err


def test_every_flag_of_a_teacher_travels_from_plan_to_extract():
    fields = {field.name for field in dataclasses.fields(ExtractConfig) if str(field.type).startswith("tuple[tuple")}
    assert fields == {"weights", "licence", "source", "normalize", "positions"}
    config = PlanConfig(("a",), **{name: (("a", f"of-{name}"), ("", f"every-{name}")) for name in fields})
    chosen = Way("f16", None, *[0.0] * 6, True, True, True, None, 0.0, 0.0)
    with click.Context(cli.extract) as context:
        cli.extract.parse_args(context, list(command(config, chosen)))
    assert {name: context.params[name] for name in fields} == {name: getattr(config, name) for name in fields}
