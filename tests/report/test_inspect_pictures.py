"""`inspect --pictures`: a cache drawn from itself, and what a student finds hardest in it."""

import json

import pytest
from click.testing import CliRunner

import cli
from pipelines import distill, extract, inspect, recode
from pipelines.reporting.codec_losses import fidelity_table
from tests.conftest import log_of, tree
from unic_cache.cache import open_cache
from unic_cache.config import InspectConfig, RecodeConfig
from unic_cache.errors import CacheError, ConfigError


def drawn(cache, out, **changes) -> str:
    config = InspectConfig(str(cache), pictures=str(out), **changes)
    return inspect.draw(config, open_cache(str(cache))).read_text()


def test_views_tokens_and_errors_are_drawn(tmp_path, cache_folder, shards):
    page = drawn(cache_folder, tmp_path / "out", shards=shards.pattern)
    names = {"views", "tokens", "token-errors"}
    assert set(tree(tmp_path / "out")) == {"index.html"} | {f"figures/{n}.{e}" for n in names for e in ("png", "svg")}
    assert "recipe unic, 32 px, seed 0" in page
    assert "View center-32-0-000" in page
    assert "each under 2 views" in page


def test_kept_views_need_no_tars(tmp_path, settings, shards):
    extract.run(settings(tmp_path / "cache", codec="klt", keep_views=True, tokens=3))
    page = drawn(tmp_path / "cache", tmp_path / "out")
    assert 'id="views"' in page
    assert 'id="token-errors"' not in page  # klt does not tell


def test_a_recoded_cache_tells_the_cosine_to_the_teacher_and_not_to_its_source(tmp_path, settings, capsys):
    extract.run(settings(tmp_path / "cache", codec="int4", views=1))
    recode.run(RecodeConfig(str(tmp_path / "cache"), str(tmp_path / "recoded"), codec="int4", device="cpu"))
    first, second = (open_cache(tmp_path / name) for name in ("cache", "recoded"))
    for name, row in zip(
        second.teachers, [row for row in fidelity_table(second).rows if "patch" in row[0]], strict=True
    ):
        steps = [cache.teachers[name].calibration.fidelity["patch"] for cache in (first, second)]
        assert row[3] == f"{steps[0] * steps[1]:.5f}"
        told = inspect.run(InspectConfig(str(tmp_path / "recoded")))
        assert told["teachers"][name]["calibration"]["to_teacher"]["patch"] == steps[0] * steps[1]
        inspect.show(told)
        assert f"fidelity (estimated over its recodings): cls 1.00000, patch {row[3]}" in capsys.readouterr().out


def test_klt_draws_its_bits(tmp_path, settings, shards):
    extract.run(settings(tmp_path / "cache", codec="klt", views=1))
    page = drawn(tmp_path / "cache", tmp_path / "out", shards=shards.pattern)
    assert 'id="bits-by-frequency"' in page


def test_without_any_pixels_the_remedy_is_named(tmp_path, cache_folder, shards, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no shard at|shards/\*.tar"):
        drawn(cache_folder, tmp_path / "out")


@pytest.mark.parametrize("changes", [{"tokens": 3}, {"kinds": ("patch",), "projector": "last"}])
def test_the_mean_loss_of_all_images_is_the_runs_own_validation(tmp_path, training, changes):
    """The images that are hardest are sorted by the loss that the log has the mean of."""
    held_out = training().shards.replace("*", "000001")
    config = training(val_shards=held_out, steps=4, **changes)
    run = distill.run(config).encoder.parent
    (value,) = [record["loss"] for record in log_of(run) if record["kind"] == "val"]
    page = drawn(config.cache, tmp_path / "out", student=str(run))
    assert f"Mean of all 40 images: {value:.4f}." in page
    assert "on 40 of 40 images held out of training" in page
    rows = page.split("Hardest images</h3>")[1].split("</table>")[0]
    losses = [float(row.split("<td>")[1].split("<")[0]) for row in rows.split("<tr>")[2:]]
    assert len(losses) == 12
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] >= value


def test_a_run_of_another_cache_is_refused(tmp_path, training, settings, shards):
    run = distill.run(training(steps=2)).encoder.parent
    extract.run(settings(tmp_path / "other", calibration_images=30))
    with pytest.raises(CacheError, match="is not the cache that the run was trained from"):
        drawn(tmp_path / "other", tmp_path / "out", student=str(run), shards=shards.pattern)


def test_a_run_without_its_checkpoint_is_refused(tmp_path, training):
    config = training(steps=2)
    run = distill.run(config).encoder.parent
    (run / "checkpoint.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no checkpoint\.safetensors"):
        drawn(config.cache, tmp_path / "out", student=str(run))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": "run"}, "add --pictures OUT"),
        ({"shards": "a.tar"}, "add --pictures OUT"),
        ({"pictures": "out", "provenance": True}, "two reports"),
        ({"pictures": "s3://bucket/out"}, "only a local path"),
    ],
)
def test_flags_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        InspectConfig("cache", **changes)


def test_the_command_prints_the_report_and_the_path_of_the_page(tmp_path, cache_folder, shards):
    arguments = ["inspect", str(cache_folder), "--pictures", str(tmp_path / "out"), "--shards", shards.pattern]
    done = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert f"The pictures are {tmp_path / 'out/index.html'}" in done.stdout
    done = CliRunner().invoke(cli.main, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["pictures"] == str(tmp_path / "out/index.html")
