"""Paths as they were meant: what would be a folder of a strange name is refused with the likely spelling."""

import pytest
from click.testing import CliRunner

import cli
from unic_cache.config import DistillConfig, EvaluateConfig, ExportConfig, InspectConfig, ReportConfig
from unic_cache.errors import ConfigError
from unic_cache.files.paths import braced, check_here, check_path, check_pattern
from unic_cache.files.schemes import open_location
from unic_cache.views.shards import expand

MISTYPED = {
    "gs:/bucket/c": "gs://bucket/c",
    "GS://bucket/c": "gs://bucket/c",
    "s3//bucket/c": "s3://bucket/c",
    "s3:bucket/c": "s3://bucket/c",
    "S3:/bucket": "s3://bucket",
    "s3;//bucket": "s3://bucket",
    "s3:\\bucket\\c": "s3://bucket/c",
    "s3a://bucket/c": "s3://bucket/c",
    "gcs://bucket/c": "gs://bucket/c",
    "s3:///bucket/c": "s3://bucket/c",
    "http:/host/c": "http://host/c",
    "https:host/c": "https://host/c",
    "HTTPS://host/c": "https://host/c",
    "file:/data/c": "/data/c",
    "file://data/c": "./data/c",
    "FILE:///data/c": "file:///data/c",
    "file:///my%20data": "/my data",
    "$PLACE/c": "/mnt/place/c",
    "/x/${PLACE}": "/x//mnt/place",
    " cache": "cache",
    "cache\n": "cache",
    "'cache'": "cache",
}
HOPELESS = ["", " ", "--resume", "~", "~/c", "~nobody-here/c", "s3://", "gs:///", "azure://x/y", "C:\\data", "C:/data"]
HOPELESS += ["host:/export/c", "me@host:c", "$NOT_SET/c", "s3://${NOT_SET}/c"]
FINE = ["cache", "/abs/c", "../c", "./s3:/x", "./~", "a:b/c", "run-10:30/c", "s3", "S3/c", "s3.tar", "gs.d/x", "http/c"]
FINE += ["s3://bucket", "gs://bucket/c", "https://host/c", "file:///data/c", "./a$b", "x~", "my data/c"]


@pytest.fixture(autouse=True)
def place(monkeypatch):
    monkeypatch.setenv("PLACE", "/mnt/place")
    monkeypatch.delenv("NOT_SET", raising=False)


@pytest.mark.parametrize(("text", "meant"), MISTYPED.items())
def test_a_mistyped_path_is_refused_with_the_likely_spelling(text, meant):
    with pytest.raises(ConfigError) as caught:
        check_path(text)
    assert str(caught.value).endswith(f"did you mean {meant}?")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", HOPELESS)
def test_what_nobody_means_is_refused(text):
    with pytest.raises(ConfigError):
        check_path(text)


@pytest.mark.parametrize("text", FINE)
def test_what_is_meant_is_taken(text):
    assert check_path(text) == text


def test_what_is_called_so_may_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$x").mkdir()
    assert check_path("$x") == "$x"


def test_a_models_name_may_hold_an_absolute_path():
    for name in ("local-dir:/models/ours", "local-dir:models/ours", "hf-hub:org/name", "open_clip:ViT-B-32/tag"):
        assert DistillConfig(init=name).init == name
        assert EvaluateConfig(encoder=(name,), shards="x.tar").encoder == (name,)
    with pytest.raises(ConfigError, match="did you mean s3://bucket/x"):
        DistillConfig(init="local-dir:s3:/bucket/x")
    with pytest.raises(ConfigError, match="neither a local path nor a supported URL"):
        DistillConfig(out="local-dir:/models/ours")


def test_each_place_where_paths_come_in_checks_them():
    for opener in (open_location, expand):
        with pytest.raises(ConfigError, match="did you mean s3://bucket/c"):
            opener("s3:/bucket/c")
    with pytest.raises(ConfigError, match=r"did you mean gs://b/x\.tar"):
        check_pattern("s3://a/{0..3}.tar::gs:/b/x.tar")
    for url in ("s3://bucket/run", "https://host/w.pth", "file:///run"):
        with pytest.raises(ConfigError, match="only a local path"):
            check_here(url, "out")


RUN = "s3://bucket/runs/student"
AWS = "copy it first: `aws s3 cp --recursive s3://bucket/runs/student student`, then give student$"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: EvaluateConfig((RUN,), shards="a.tar"), f"^encoder {RUN}: only a local path is accepted here; {AWS}"),
        (lambda: ExportConfig(f"{RUN}/", "out"), AWS),
        (lambda: ReportConfig("out", (RUN,)), AWS),
        (lambda: InspectConfig("cache", pictures="out", student=RUN), AWS),
        (lambda: DistillConfig(from_run=RUN), f"^from {RUN}: .*{AWS}"),
        (lambda: DistillConfig(from_run="gs://b/run-1.5"), r"`gcloud storage cp --recursive gs://b/run-1\.5 \.`, then"),
        (lambda: DistillConfig(init="gs://b/encoder.safetensors"), "`gcloud storage cp gs://b/encoder.safetensors enc"),
        (lambda: DistillConfig(init="https://host/w.pth"), "`curl -o w.pth https://host/w.pth`, then give w.pth"),
        (lambda: DistillConfig(from_run="https://host/run"), "only a local path is accepted here; copy it first$"),
        (lambda: DistillConfig(from_run="file:///run"), "only a local path is accepted here; leave out file://$"),
        (lambda: ExportConfig("run", RUN), "only a local path is accepted here; copy the files to the store afterw"),
    ],
)
def test_a_run_in_a_store_is_refused_with_how_to_copy_it(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_braces_are_those_of_webdataset_and_need_no_environment(monkeypatch):
    monkeypatch.setenv("WDS_x", "other")
    assert braced("a{00..02}.tar::{b,c}.tar") == ("a00.tar", "a01.tar", "a02.tar", "b.tar", "c.tar")
    assert braced("${x}.tar") == ("${x}.tar",)
    with pytest.raises(ValueError, match="Unbalanced"):
        braced("{0..3")


OPTIONS = {
    "shard": ["IMAGES", "OUT", "--list", "--masks", "--depths"],
    "plan": ["--shards", "--cache", "--weights"],
    "extract": ["--shards", "--cache", "--weights"],
    "distill": ["--cache", "--shards", "--out", "--init", "--val-shards", "--weights"],
    "evaluate": ["--encoder", "--shards", "--train", "--test", "--cache"],
    "recode": ["SRC", "DST"],
    "inspect": ["CACHE"],
    "status": ["CACHE"],
    "verify": ["CACHE", "--shards", "--weights"],
    "repair": ["CACHE"],
}
NEEDED = {
    "extract": ["--teacher", "dino"],
    "plan": ["--teacher", "dino"],
    "evaluate": ["--encoder", "e", "--shards", "s"],
}


@pytest.mark.parametrize("text", ["s3:/bucket/x", "~/x", ""])
@pytest.mark.parametrize(("command", "option"), [(c, o) for c, options in OPTIONS.items() for o in options])
def test_every_path_of_every_command_is_checked(tmp_path, monkeypatch, command, option, text):
    monkeypatch.chdir(tmp_path)
    places = [name for name in OPTIONS[command] if not name.startswith("-")]
    words = [text if name == option else "here" for name in places]
    if option.startswith("-"):
        partner = {"--train": ["--test", "s"], "--test": ["--train", "s"]}.get(option, [])
        needed = ["--encoder", "e"] if partner else NEEDED.get(command, [])
        online = ["--online", "--teacher", "dino"] if (command, option) == ("distill", "--weights") else []
        words += [*needed, *partner, *online, f"{option}={'dino=' if option == '--weights' else ''}{text}"]
    done = CliRunner().invoke(cli.main, [command, *words])
    assert done.exit_code == 2, done.output
    assert {"s3:/bucket/x": "s3://bucket/x", "~/x": "not expanded", "": "empty"}[text] in done.output
    assert not list(tmp_path.iterdir())
