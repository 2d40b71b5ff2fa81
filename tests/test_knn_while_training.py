"""k-NN beside the held-out loss: what `evaluate` says of the same encoder, and training none the wiser."""

import dataclasses
import errno
import signal

import pytest
import torch

from pipelines import distill, evaluate
from pipelines.evaluating import knn_probe
from pipelines.training.runlog import RunLog
from tests.conftest import log_of, make_shards, picture, png, write_tar
from unic_cache.ahead import thread_pool
from unic_cache.config import EvaluateConfig
from unic_cache.errors import ConfigError, ShardError
from unic_cache.evaluate.curves import Training, knn_figure
from unic_cache.evaluate.run_log import read_records
from unic_cache.student.backbone import build_encoder, encoder_spec
from unic_cache.student.run_files import CHECKPOINT


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """70 images, more than a batch: an unlabelled one, one that cannot be decoded, and twins under two labels."""
    folder = tmp_path_factory.mktemp("labelled")
    samples = [(f"k{n:05d}", png(picture(n)), n % 3) for n in range(200, 265)]
    odd = [("broken", b"nothing", 1), ("none", png(picture(300)), None), ("twin", png(picture(205)), 0)]
    write_tar(folder / "a.tar", samples[:30] + odd)
    write_tar(folder / "b.tar", samples[30:] + [(f"m{n}", png(picture(n)), 2) for n in (206, 270)])
    return str(folder / "*.tar")


def knn_of(out):
    return [record for record in log_of(out) if record["kind"] == "knn"]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_it_is_what_evaluate_says_of_the_exported_encoder(training, tmp_path, labelled, precision):
    config = training(knn_shards=labelled, eval_every=4, steps=6, drop_path=0.5, precision=precision)
    distill.run(config)
    records = knn_of(tmp_path / "run")
    assert [record["step"] for record in records] == [4, 6]
    result = evaluate.run(EvaluateConfig((config.out,), shards=labelled, k=20))
    (student,) = (one for one in result.encoders if one.kind == "student")
    assert records[-1] == {
        "kind": "knn",
        "step": 6,
        "accuracy": pytest.approx(student.accuracy[20].mean, abs=1e-12),
        "low": pytest.approx(student.accuracy[20].low, abs=1e-12),
        "high": pytest.approx(student.accuracy[20].high, abs=1e-12),
        "k": 20,
        "images": result.images,
    }
    assert knn_figure([Training("run", read_records(tmp_path / "run/log.jsonl"), config.drop_teacher)]) is not None
    assert result.images == 68
    assert 0.2 < student.accuracy[20].mean < 1


def test_training_is_bit_for_bit_what_it_is_without(training, tmp_path, labelled, shards):
    common = {"eval_every": 2, "val_shards": str(shards.folder / "000002.tar"), "drop_path": 0.3}
    distill.run(training(out=str(tmp_path / "without"), **common))
    distill.run(training(out=str(tmp_path / "with"), knn_shards=labelled, **common))
    for file in (CHECKPOINT, "encoder.safetensors"):
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()
    kinds = [record["kind"] for record in log_of(tmp_path / "with")]
    assert kinds == ["train", "val", "knn"] * 3
    one, other = (
        [
            {key: record[key] for key in ("kind", "step", "loss", "teachers")}
            for record in log_of(out)
            if "loss" in record
        ]
        for out in (tmp_path / "with", tmp_path / "without")
    )
    assert one == other


def test_images_that_do_not_fit_memory_are_decoded_each_time(training, tmp_path, labelled, monkeypatch, capsys):
    distill.run(training(out=str(tmp_path / "kept"), knn_shards=labelled, eval_every=3))
    assert (
        "k-NN on 68 images of 3 classes at every validation, views of 32 px kept in memory" in capsys.readouterr().err
    )
    monkeypatch.setattr(knn_probe, "IN_MEMORY", 68 * 32 * 32 * 3)  # all but the broken one
    distill.run(training(out=str(tmp_path / "anew"), knn_shards=labelled, eval_every=3))
    assert "decoded anew each time" in capsys.readouterr().err
    assert knn_of(tmp_path / "anew") == knn_of(tmp_path / "kept")


def test_fewer_images_than_neighbours_all_vote(training, tmp_path):
    few = make_shards(tmp_path / "few", (7,), first=500)
    config = training(knn_shards=few.pattern, steps=2)
    distill.run(config)
    (record,) = knn_of(tmp_path / "run")
    assert (record["k"], record["images"]) == (6, 7)
    (*_, student) = evaluate.run(EvaluateConfig((config.out,), shards=few.pattern)).encoders
    assert record["accuracy"] == pytest.approx(student.accuracy[20].mean)


def test_tars_that_are_trained_on_are_fine_and_said(training, shards, labelled, capsys):
    distill.run(training(knn_shards=shards.pattern, val_shards=str(shards.folder / "000002.tar"), steps=1))
    assert "k-NN: 77 of these images are in tars that are trained on, without their labels" in capsys.readouterr().err
    distill.run(training(knn_shards=labelled, steps=1, out=training().out + "-2"))
    assert "trained on, without their labels" not in capsys.readouterr().err


@pytest.mark.parametrize(("fails_at", "kind"), [(3, "knn"), (3, "val"), (6, "knn"), (6, "val")])
def test_what_an_error_left_out_of_a_validation_is_made_up_once(training, tmp_path, labelled, shards, fails_at, kind):
    config = training(eval_every=3, val_shards=str(shards.folder / "000002.tar"), knn_shards=labelled)
    honest = RunLog.write

    def write(self, written, step, values):
        if (written, step) == (kind, fails_at):
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(self, written, step, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "write", write)
        with pytest.raises(OSError, match="No space left"):
            distill.run(config)
    distill.run(dataclasses.replace(config, resume=True))
    lines = [(record["step"], record["kind"]) for record in log_of(tmp_path / "run")]
    assert lines == [(2, "train"), (3, "val"), (3, "knn"), (4, "train"), (6, "train"), (6, "val"), (6, "knn")]


def test_it_can_begin_end_and_change_on_resume(training, tmp_path, labelled, monkeypatch):
    whole = distill.run(training(out=str(tmp_path / "whole"), steps=9, eval_every=3))
    honest, calls = distill.set_rate, iter(range(1, 1000))

    def counted(*arguments):
        if next(calls) == 4:
            signal.raise_signal(signal.SIGTERM)
        return honest(*arguments)

    monkeypatch.setattr(distill, "set_rate", counted)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of 9"):
        distill.run(training(steps=9, eval_every=3, knn_shards=labelled))
    monkeypatch.undo()
    few = make_shards(tmp_path / "few", (9,), first=500)
    resumed = distill.run(training(steps=9, eval_every=3, knn_shards=few.pattern, resume=True))
    assert resumed.encoder.read_bytes() == whole.encoder.read_bytes()
    assert [(record["step"], record["images"]) for record in knn_of(tmp_path / "run")] == [(3, 68), (6, 9), (9, 9)]


@pytest.mark.parametrize(("label", "said"), [(None, "0 images have a label, of 0"), (1, "4 images have a label, of 1")])
def test_shards_without_two_classes_are_refused_before_training(training, tmp_path, label, said):
    path = write_tar(tmp_path / "tars/a.tar", [(f"x{n}", png(picture(n)), label) for n in range(4)])
    with pytest.raises(ShardError, match=rf"--knn-shards.*a\.tar: {said} classes; k-NN"):
        distill.run(training(knn_shards=str(path)))
    assert not (tmp_path / "run/config.json").exists()


def test_folders_that_number_their_classes_differently_are_refused(training, tmp_path):
    for name, classes in (("one", '{"0": "cat", "1": "dog"}'), ("two", '{"0": "dog", "1": "eel"}')):
        make_shards(tmp_path / name, (9,), first=0 if name == "one" else 50, name=name)
        (tmp_path / name / "classes.json").write_text(classes)
    with pytest.raises(ShardError, match="number their classes differently"):
        distill.run(training(knn_shards=f"{tmp_path}/{{one,two}}/*.tar"))


def test_images_that_change_during_training_are_told(labelled, monkeypatch):
    monkeypatch.setattr(knn_probe, "IN_MEMORY", 0)
    spec = encoder_spec("test_vit", 32, 16)
    with thread_pool(1) as pool:
        probe = knn_probe.open_knn_probe(labelled, spec, pool, lambda entry: False)
        monkeypatch.setattr("unic_cache.stream.pixels.pixel_crc", lambda view: 7)
        with pytest.raises(ShardError, match="images for k-NN changed during training"):
            probe.measure(build_encoder(spec, 0))


def test_an_encoder_that_diverged_is_told_and_a_frozen_mode_is_left_alone(labelled):
    spec = encoder_spec("test_vit", 32, 16)
    encoder = build_encoder(spec, 0)
    with thread_pool(1) as pool:
        probe = knn_probe.open_knn_probe(labelled, spec, pool, lambda entry: False)
    assert encoder.training
    probe.measure(encoder)
    assert all(module.training for module in encoder.modules())
    probe.measure(encoder.eval())
    assert not any(module.training for module in encoder.modules())
    with torch.no_grad():
        encoder.norm.weight[0] = torch.nan
    with pytest.raises(ConfigError, match="not finite"):
        probe.measure(encoder)
