"""`report` from its inputs to its page: what is drawn, what is missed, what is refused."""

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import cli
from pipelines import distill, report
from pipelines.reporting.inputs import labels, read_run
from tests.conftest import CNN, VIT, tree
from tests.report.made_up import write_evaluation, write_run
from unic_cache.cache import open_cache
from unic_cache.config import ReportConfig, Views
from unic_cache.errors import CacheError, ConfigError

WITHOUT_CACHE = {
    "gains",
    "task-against-task",
    "loss-per-teacher",
    "teacher-coefficients",
    "knn-while-training",
    "principal-dimensions",
    "weight-and-feature-use",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return (
        write_run(folder / "dropping"),
        write_run(folder / "plain", drop=0.0, knn=False),
        write_evaluation(folder / "small.json"),
        write_evaluation(folder / "tiny.json", "knn", "depth", analysis=False),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory, inputs):
    """The folder of a report on all inputs."""
    return report.run(ReportConfig(str(tmp_path_factory.mktemp("made") / "out"), inputs)).parent


def test_every_figure_is_in_the_page_and_beside_it(made):
    files, page = tree(made), (made / "index.html").read_text()
    assert set(files) == {"index.html"} | {f"figures/{n}.{end}" for n in WITHOUT_CACHE for end in ("png", "svg")}
    for name in WITHOUT_CACHE:
        assert f'<figure id="{name}">' in page
        with Image.open(made / f"figures/{name}.png") as image:
            assert image.width > 800
        ET.fromstring(files[f"figures/{name}.svg"])
    assert page.count("<svg role=") == len(WITHOUT_CACHE)
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org/", "")


def test_the_table_has_every_encoder_on_every_task_with_its_interval(made):
    page = (made / "index.html").read_text()
    assert "<td>45.0 (43.0 to 47.0)</td><td>50.0 (48.0 to 52.0)</td><td>0.500 (0.480 to 0.520)</td>" in page
    assert "small, with 95 % intervals; test images: k-NN 300, segmentation 300, depth 300" in page
    assert "segmentation by class" in page
    assert "<td>12.3</td>" in page


def test_what_the_scores_do_not_say_stands_with_them(tmp_path, inputs):
    data = json.loads(Path(inputs[2]).read_text()) | {"trained_on": 82, "remarks": ["dino is read from the cache"]}
    (tmp_path / "seen.json").write_text(json.dumps(data))
    page = report.run(ReportConfig(str(tmp_path / "out"), (str(tmp_path / "seen.json"),))).read_text()
    seen = "Of the test images, up to 82 were seen in training, without labels"
    assert f"<p>seen: {seen}. dino is read from the cache.</p>" in page


def test_a_run_without_balancing_drops_no_teacher(tmp_path):
    folder = Path(write_run(tmp_path / "run"))
    settings = json.loads((folder / "config.json").read_text())
    assert read_run(folder, "run").training.drop == settings["drop_teacher"] > 0
    (folder / "config.json").write_text(json.dumps(settings | {"balancing": "none"}))
    assert read_run(folder, "run").training.drop == 0


def test_costs_are_of_the_log(made):
    cells = "".join(f"<td>{text}</td>" for text in ("40", "20,480", f"{20480 / 256 / 3600:.2f}", "256.0", "25.0"))
    assert cells in (made / "index.html").read_text()


def test_equal_inputs_give_equal_bytes_also_over_an_earlier_report(tmp_path, inputs, made):
    report.run(ReportConfig(str(tmp_path / "out"), inputs[3:]))
    report.run(ReportConfig(str(tmp_path / "out"), inputs))
    assert tree(tmp_path / "out") == tree(made)


def test_figures_that_only_an_earlier_report_had_are_deleted(tmp_path, inputs):
    report.run(ReportConfig(str(tmp_path / "out"), inputs[1:2]))
    assert "figures/loss-per-teacher.png" in tree(tmp_path / "out")
    report.run(ReportConfig(str(tmp_path / "out"), inputs[3:]))
    assert set(tree(tmp_path / "out")) == {"index.html"} | {
        f"figures/{name}.{end}" for name in ("gains", "task-against-task") for end in ("png", "svg")
    }


@pytest.mark.parametrize("name", ["notes.txt", "index.html", "figures/mine.png", "figures/gains.png"])
def test_a_folder_with_anything_else_is_refused_and_left_as_it_was(tmp_path, inputs, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(ConfigError, match="choose a folder of its own"):
        report.run(ReportConfig(str(tmp_path / "out"), inputs))
    assert tree(tmp_path / "out") == {name: b"mine"}


def test_what_is_missing_is_said_with_what_would_give_it(tmp_path, inputs, capsys):
    page = report.run(ReportConfig(str(tmp_path / "out"), inputs[3:])).read_text()
    told = capsys.readouterr().err
    for line in (
        "loss per teacher; needs the folder of a run",
        "k-NN while training; needs a run of `unic-cache distill --knn-shards P`",
        "principal dimensions; needs a file of `unic-cache evaluate --json` made with --analysis",
        "bytes of the cache, and patch tokens; needs --cache CACHE",
    ):
        assert f"not shown: {line}" in told
        assert line in page.replace("&#39;", "'")


def refused(*arguments: object) -> str:
    done = CliRunner().invoke(cli.main, ["report", *map(str, arguments)])
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    return " ".join(done.output.split())


def test_what_is_no_input_is_refused_by_name(tmp_path, inputs, cache_folder):
    out = tmp_path / "out"
    assert "no such file or folder" in refused(out, tmp_path / "nothing.json")
    assert "Missing argument" in refused(out)
    assert "is given twice" in refused(out, inputs[0], inputs[0] + "/")
    assert "no run of `unic-cache distill`" in refused(out, cache_folder)
    empty = Path(write_run(tmp_path / "empty"))
    (empty / "log.jsonl").write_text("")
    assert "no training or validation records in it yet" in refused(out, empty)
    (empty / "log.jsonl").unlink()
    assert "no such log" in refused(out, empty)
    (empty / "config.json").write_text('{"stage": "extract"}')
    assert "is not of a run" in refused(out, empty)
    (empty / "config.json").write_text('{"stage": "distill", "colour": 3}')
    assert "another release's" in refused(out, empty)
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(tmp_path / "file", inputs[0])
    assert "only a local path" in refused(out, "s3://bucket/run")
    assert "--shards names images of a cache" in refused(out, inputs[2], "--shards", inputs[2])
    assert not out.exists()


def test_inputs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    for name in ("a/run", "b/run", "c/other"):
        (tmp_path / name).mkdir(parents=True)
    paths = [tmp_path / name for name in ("a/run", "b/run", "c/other")]
    assert labels(paths) == [str(paths[0]), str(paths[1]), "other"]


def test_a_whole_run_is_drawn_with_the_patch_tokens_of_teachers_and_student(tmp_path, training, capsys):
    done = distill.run(training(val_shards=training().shards.replace("*", "000001")))
    run = done.encoder.parent
    page = report.run(ReportConfig(str(tmp_path / "out"), (str(run),), pictures=3)).read_text()
    assert f"components of the patch tokens of {CNN}, {VIT}, run as colours" in page
    assert "3 images of the cache under the center view of 32 px" in page
    assert "<h3>Cache</h3>" in page
    assert "not shown: patch tokens" not in capsys.readouterr().err


def test_the_own_cache_is_known_although_its_first_view_was_missing(tmp_path, training, capsys):
    config = training(allow_missing=True)
    cache = open_cache(config.cache)
    record = cache.teacher(CNN).record(cache.unit(0, 0, Views("unic", 32, 0), 0))
    assert record is not None
    (Path(config.cache) / record.name).unlink()
    done = distill.run(config)
    report.run(ReportConfig(str(tmp_path / "out"), (str(done.encoder.parent),)))
    assert "is not the cache that" not in capsys.readouterr().err


def test_another_cache_under_the_runs_name_is_not_taken_for_its_own(tmp_path, training, settings, capsys):
    from pipelines import extract

    config = training()
    done = distill.run(config)
    shutil.rmtree(config.cache)
    extract.run(settings(Path(config.cache), calibration_images=30))
    report.run(ReportConfig(str(tmp_path / "out"), (str(done.encoder.parent),)))
    assert "is not the cache that" in capsys.readouterr().err


def test_a_named_cache_that_cannot_be_drawn_is_an_error(tmp_path, inputs, settings, shards):
    from pipelines import extract

    extract.run(settings(tmp_path / "cache", views=1))
    with pytest.raises(CacheError, match="has no center views"):
        report.run(ReportConfig(str(tmp_path / "out"), inputs, cache=str(tmp_path / "cache"), shards=shards.pattern))


def test_a_cache_and_runs_alone_need_no_evaluation(tmp_path, inputs, cache_folder, shards):
    config = ReportConfig(str(tmp_path / "out"), inputs[:1], cache=str(cache_folder), shards=shards.pattern, pictures=2)
    page = report.run(config).read_text()
    assert "patch tokens of dropping; needs its encoder.safetensors" in page
