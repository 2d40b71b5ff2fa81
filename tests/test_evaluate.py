"""k-NN through the whole pipeline against features taken directly, and what it refuses."""

import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import distill, evaluate, extract, recode
from tests.conftest import CNN, VIT, make_shards, picture, png, write_tar
from unic_cache.cache import open_cache
from unic_cache.config import EvaluateConfig, RecodeConfig, Views
from unic_cache.errors import CacheError, ConfigError, ShardError
from unic_cache.evaluate.knn import knn, knn_leave_one_out
from unic_cache.student.backbone import build_encoder, embed, encoder_spec, prepare
from unic_cache.student.export import save_encoder
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import load_teacher
from unic_cache.views import decode as decoding
from unic_cache.views.augment import make_view
from unic_cache.views.decode import decode
from unic_cache.views.shards import OpenShard, describe


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory):
    """A student that is not the random one of seed 0."""
    spec = encoder_spec("test_vit", 32, 16)
    path = tmp_path_factory.mktemp("student") / "encoder.safetensors"
    save_encoder(path, build_encoder(spec, 5), spec, {})
    return path


def centered(paths: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    views, labels = [], []
    for path, entry in zip(paths, describe(paths), strict=True):
        with OpenShard(path, entry) as tar:
            views += [make_view(decode(tar.read(row)), Views("center", 32, 0), 0, 0) for row in range(entry.rows)]
        labels += entry.labels
    return torch.from_numpy(np.stack(views)), torch.tensor(labels)


def test_leave_one_out_equals_features_taken_directly(cache_folder, shards, encoder_file, weights):
    result = evaluate.run(
        EvaluateConfig((str(encoder_file),), task=("knn",), shards=shards.pattern, cache=str(cache_folder), k=5)
    )
    views_BHWC, labels = centered(sorted(str(path) for path in shards.folder.glob("*.tar")))
    direct = {}
    for name in (VIT, CNN):
        direct[name] = load_teacher(resolve(name), str(weights[name]))(views_BHWC)["cls"]
    spec = encoder_spec("test_vit", 32, 16, 0.0)
    with torch.inference_mode():
        for name, seed in (("student", 5), ("random student", 0)):
            direct[name] = embed(build_encoder(spec, seed).eval(), prepare(views_BHWC, spec))
    found = {encoder.name: encoder for encoder in result.encoders}
    assert list(found) == [CNN, VIT, "random student", "student"]
    for name, features in direct.items():
        expected = knn_leave_one_out(features, labels, [5])[5].mean()
        assert found[name].accuracy[5].mean == pytest.approx(expected, abs=1.01 / len(labels)), name
        assert found[name].accuracy[5].low <= found[name].accuracy[5].mean <= found[name].accuracy[5].high
    assert found["random student"].over_random is None
    assert found["student"].over_random.mean == pytest.approx(
        found["student"].accuracy[5].mean - found["random student"].accuracy[5].mean
    )


def test_test_images_are_asked_and_train_images_answer(cache_folder, shards, encoder_file):
    first, second = (str(shards.folder / name) for name in ("000000.tar", "000001.tar"))
    result = evaluate.run(EvaluateConfig((str(encoder_file),), task=("knn",), train=first, test=second, k=3))
    assert result.images == 40
    (train, train_labels), (test, test_labels) = centered([first]), centered([second])
    spec = encoder_spec("test_vit", 32, 16)
    encoder = build_encoder(spec, 5).eval()
    with torch.inference_mode():
        features = [embed(encoder, prepare(views, spec)) for views in (train, test)]
    expected = knn(features[0], train_labels, features[1], test_labels, [3])[3].mean()
    assert result.encoders[-1].accuracy[3].mean == pytest.approx(expected)


def test_a_cache_without_a_center_view_is_told(tmp_path, settings, shards, encoder_file):
    extract.run(settings(tmp_path / "cache", views=1))
    with pytest.raises(
        CacheError,
        match=r"has center views of these sizes: none; one is needed.*extract --recipe center --views 1",
    ):
        evaluate.run(
            EvaluateConfig((str(encoder_file),), task=("knn",), shards=shards.pattern, cache=str(tmp_path / "cache"))
        )


def test_teachers_without_a_center_view_are_left_out(tmp_path, settings, cache_folder, shards, encoder_file, weights):
    folder = tmp_path / "cache"
    extract.run(settings(folder, views=1))
    extract.run(settings(folder, teachers=(VIT,), weights=((VIT, str(weights[VIT])),), recipe="center", views=1))
    result = evaluate.run(EvaluateConfig((str(encoder_file),), task=("knn",), shards=shards.pattern, cache=str(folder)))
    assert [encoder.name for encoder in result.encoders] == [VIT, "random student", "student"]
    both = EvaluateConfig(
        (str(encoder_file),), task=("knn",), shards=shards.pattern, cache=str(cache_folder), teachers=(CNN,)
    )
    assert [encoder.name for encoder in evaluate.run(both).encoders] == [CNN, "random student", "student"]


def test_a_teacher_that_is_a_sample_of_its_patch_tokens_is_no_whole_image(
    tmp_path, settings, shards, encoder_file, weights, capsys
):
    """The mean of a few of the tokens that extract keeps is another feature than the mean of all."""
    name, folder = f"{VIT}+cls=none", tmp_path / "cache"
    one = {"teachers": (name,), "weights": ((name, str(weights[VIT])),), "tokens": 1}
    extract.run(settings(folder, recipe="center", views=1, **one))
    common = {"task": ("knn",), "shards": shards.pattern, "cache": str(folder)}
    result = evaluate.run(EvaluateConfig((str(encoder_file),), **common))
    assert [encoder.name for encoder in result.encoders] == ["random student", "student"]
    assert f"with a sample of the patch tokens alone; --encoder runs it here: {name}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="cannot be evaluated from the cache, without a CLS token, and with a sample"):
        evaluate.run(EvaluateConfig((str(encoder_file),), teachers=(name,), **common))


def test_images_that_would_find_themselves_are_refused(shards, encoder_file):
    with pytest.raises(ShardError, match=r"its images are in --train too and would find themselves; use --shards"):
        evaluate.run(
            EvaluateConfig(
                (str(encoder_file),), task=("knn",), train=shards.pattern, test=str(shards.folder / "000001.tar")
            )
        )


def test_folders_that_number_their_classes_differently_are_refused(tmp_path, encoder_file):
    for name, classes in (("train", '{"0": "cat", "1": "dog"}'), ("val", '{"0": "dog", "1": "eel"}')):
        make_shards(tmp_path / name, (9,), first=0 if name == "train" else 50)
        (tmp_path / name / "classes.json").write_text(classes)
    with pytest.raises(ShardError, match=r"train and .*val number their classes differently"):
        evaluate.run(
            EvaluateConfig(
                (str(encoder_file),), task=("knn",), train=f"{tmp_path}/train/*.tar", test=f"{tmp_path}/val/*.tar"
            )
        )


def test_shards_without_labels_are_told(tmp_path, encoder_file):
    write_tar(tmp_path / "tars/000000.tar", [(f"image{n}", png(picture(n)), None) for n in range(3)])
    with pytest.raises(ShardError, match=r"0 images have a label.*`\.cls` members of at least two classes"):
        evaluate.run(EvaluateConfig((str(encoder_file),), task=("knn",), shards=str(tmp_path / "tars/*.tar")))


def test_a_bad_image_is_left_out_counted_and_named(tmp_path, settings, encoder_file, capsys):
    samples = [(f"image{n}", png(picture(n)), n % 2) for n in range(9)]
    samples[4] = ("broken", b"nothing", 0)
    path = write_tar(tmp_path / "tars/000000.tar", samples)
    extract.run(settings(tmp_path / "cache", shards=str(path), recipe="center", views=1, calibration_images=10))
    capsys.readouterr()
    result = evaluate.run(
        EvaluateConfig((str(encoder_file),), task=("knn",), shards=str(path), cache=str(tmp_path / "cache"), k=3)
    )
    assert (result.images, result.left_out, len(result.encoders)) == (8, 1, 4)
    assert f"1 of 9 images: {path}, row 4 (broken.png): " in capsys.readouterr().err
    good = write_tar(tmp_path / "good/000000.tar", [sample for sample in samples if sample[0] != "broken"])
    assert (
        evaluate.run(EvaluateConfig((str(encoder_file),), task=("knn",), shards=str(good), k=3)).encoders[-1]
        == result.encoders[-1]
    )


def test_what_cannot_be_judged_without_bad_images_is_told(tmp_path, encoder_file):
    samples = [(f"image{n}", png(picture(n)), 0) for n in range(4)] + [("broken", b"nothing", 1)]
    path = write_tar(tmp_path / "tars/000000.tar", samples)
    with pytest.raises(ShardError, match="4 images have a label, of 1 classes"):
        evaluate.run(EvaluateConfig((str(encoder_file),), task=("knn",), shards=str(path)))


class TestWhatVouchesForAnImageIsTheImage:
    def test_features_of_other_pictures_are_refused_with_row_and_key(self, tmp_path, settings, encoder_file):
        def pack(folder, *replaced):
            pictures = [picture(n + (400 if n in replaced else 0)) for n in range(30)]
            return write_tar(
                tmp_path / folder / "a.tar", [(f"k{n:02d}", png(p), n % 3) for n, p in enumerate(pictures)]
            )

        cache = tmp_path / "cache"
        extract.run(settings(cache, shards=str(pack("old")), recipe="center", views=1, calibration_images=10))
        again = EvaluateConfig((str(encoder_file),), task=("knn",), shards=str(pack("new", 17)), cache=str(cache), k=3)
        with pytest.raises(CacheError, match=r"new/a.tar, row 17 \(k17.png\): 1 of 30 pictures are not those"):
            evaluate.run(again)
        many = dataclasses.replace(again, shards=str(pack("many", *range(1, 15))))
        with pytest.raises(CacheError, match=r"row 5 \(k05.png\), and 9 more: 14 of 30 pictures"):
            evaluate.run(many)

    def test_two_sets_that_number_their_files_alike_are_two_sets(self, tmp_path, encoder_file, capsys):
        train, test = (make_shards(tmp_path / name, (9,), first=first) for name, first in (("a", 0), ("b", 0)))
        write_tar(tmp_path / "b/000000.tar", [(f"image{n:05d}", png(picture(n + 70)), n % 3) for n in range(9)])
        result = evaluate.run(
            EvaluateConfig((str(encoder_file),), task=("knn",), train=train.pattern, test=test.pattern, k=3)
        )
        assert result.images == 9
        assert "pixel for pixel" not in capsys.readouterr().err

    def test_a_picture_in_both_sets_is_counted_and_is_no_neighbour_of_itself(self, tmp_path, encoder_file, capsys):
        """Under another key, in another tar, with another label: what it would have answered is not asked."""
        pictures = [(f"image{n:05d}", png(picture(n)), n % 3) for n in range(12)]
        write_tar(tmp_path / "train/000000.tar", [*pictures, ("twin", png(picture(50)), 2)])
        write_tar(tmp_path / "alone/000000.tar", pictures)
        test = write_tar(tmp_path / "test/000000.tar", [("x", png(picture(50)), 2), ("y", png(picture(51)), 0)])
        config = EvaluateConfig(
            (str(encoder_file),), task=("knn",), train=f"{tmp_path}/train/*.tar", test=str(test), k=1
        )
        twins = evaluate.run(config)
        told = capsys.readouterr().err
        assert (
            f"1 of 2 test images are in --train too, pixel for pixel, the first of them {test}, row 0 (x.png)" in told
        )
        without = evaluate.run(dataclasses.replace(config, train=f"{tmp_path}/alone/*.tar"))
        assert [e.accuracy for e in twins.encoders] == [e.accuracy for e in without.encoders]
        assert "pixel for pixel" not in capsys.readouterr().err

    def test_twins_within_a_set_do_not_find_each_other(self, tmp_path, encoder_file, capsys):
        samples = [(f"image{n:05d}", png(picture(n)), n % 2) for n in range(8)]
        path = write_tar(tmp_path / "tars/a.tar", [*samples, ("again", png(picture(3)), 1)])
        evaluate.run(EvaluateConfig((str(encoder_file),), task=("knn",), shards=str(path), k=3))
        assert "2 of 9 test images are there more than once, pixel for pixel" in capsys.readouterr().err

    def test_a_copied_tar_under_other_keys_is_found_by_its_pixels(self, tmp_path, encoder_file):
        make_shards(tmp_path / "train", (9, 9))
        write_tar(tmp_path / "test/copy.tar", [(f"other{n}", png(picture(n)), n % 3) for n in range(9, 18)])
        config = EvaluateConfig(
            (str(encoder_file),), task=("knn",), train=f"{tmp_path}/train/*.tar", test=f"{tmp_path}/test/*.tar"
        )
        with pytest.raises(ShardError, match=r"copy.tar: its images are in --train too and would find themselves"):
            evaluate.run(config)

    def test_what_the_student_was_trained_on_is_said(self, shards, cache_folder, training):
        distill.run(training(steps=1, val_shards=None))
        config = EvaluateConfig((training().out,), task=("knn",), shards=shards.pattern, cache=str(cache_folder), k=3)
        result = evaluate.run(config)
        assert result.trained_on == 82
        assert "was trained on views of 82 of these test images, without labels" in result.notes()[0]

    def test_images_that_are_not_tested_do_not_count(self, shards, cache_folder, training, tmp_path):
        distill.run(training(steps=1, val_shards=None))
        for path in shards.folder.glob("*.tar"):
            shutil.copy(path, tmp_path / path.name)
        raw = (tmp_path / "000002.tar").read_bytes()
        places = [place for place in range(len(raw)) if raw.startswith(b"IDAT", place)]
        spoiled = bytearray(raw)
        spoiled[places[-1] + 6 : places[-1] + 200] = bytes(194)
        (tmp_path / "000002.tar").write_bytes(spoiled)
        config = EvaluateConfig(
            (training().out,), task=("knn",), shards=f"{tmp_path}/0*.tar", cache=str(cache_folder), k=3
        )
        result = evaluate.run(config)
        assert result.trained_on == result.images == 81

    def test_of_an_encoder_without_its_run_it_is_said_to_be_unknown(self, shards, cache_folder, training, tmp_path):
        distill.run(training(steps=1, val_shards=None))
        lone = tmp_path / "lone"
        lone.mkdir()
        shutil.copy(Path(training().out) / "encoder.safetensors", lone)
        encoder = str(lone / "encoder.safetensors")
        config = EvaluateConfig((encoder,), task=("knn",), shards=shards.pattern, cache=str(cache_folder), k=3)
        unread = f"{encoder}: no run that can be read is beside it"
        words = f"{unread}, so it is unknown whether it was trained on these test images"
        assert evaluate.run(config).notes()[0] == words
        assert not any("unknown" in note for note in evaluate.run(dataclasses.replace(config, cache=None)).notes())

    def test_where_the_cache_cannot_tell_it_is_said_to_be_unknown(self, shards, cache_folder, training, tmp_path):
        """As of a recoded cache, which has other records."""
        distill.run(training(steps=1, val_shards=None))
        recode.run(RecodeConfig(str(cache_folder), str(tmp_path / "recoded"), codec="int8"))
        config = EvaluateConfig((training().out,), task=("knn",), shards=shards.pattern, k=3)
        result = evaluate.run(dataclasses.replace(config, cache=str(tmp_path / "recoded")))
        words = f"{training().out} was trained on tars with these names (000000), but not from this cache, so it is"
        assert (result.trained_on, result.to_json()["remarks"]) == (0, result.notes())
        assert result.notes()[0] == f"{words} unknown whether it was trained on these test images"
        (Path(training().out) / "snapshot.json").write_text("{}")
        assert (
            "no run that can be read" in evaluate.run(dataclasses.replace(config, cache=str(cache_folder))).notes()[0]
        )
        assert not evaluate.run(config).notes()

    def test_what_a_first_stage_was_trained_on_counts_too(self, shards, cache_folder, training, tmp_path):
        distill.run(training(steps=1, val_shards=None))
        few, out = f"{shards.folder}/000000.tar", str(tmp_path / "second")
        distill.run(training(steps=1, val_shards=None, from_run=training().out, shards=few, out=out))
        common = {"task": ("knn",), "k": 3, "cache": str(cache_folder)}
        result = evaluate.run(EvaluateConfig((out,), shards=f"{shards.folder}/00000[01].tar", **common))
        assert result.trained_on == result.images == 77
        assert not any("unknown" in note for note in result.notes())
        shutil.rmtree(training().out)
        result = evaluate.run(EvaluateConfig((out,), shards=f"{shards.folder}/00000[01].tar", **common))
        assert result.trained_on == 37
        assert f"{out} began from weights whose run is not beside them, so it is unknown" in result.notes()[1]

    def test_what_it_was_started_from_counts_too_if_that_may_be_a_student(
        self, shards, cache_folder, training, tmp_path
    ):
        first = distill.run(training(steps=1, val_shards=None)).encoder
        few, copied = f"{shards.folder}/000000.tar", tmp_path / "copied/encoder.safetensors"
        copied.parent.mkdir()
        shutil.copy(first, copied)
        out = {name: str(tmp_path / name) for name in ("beside", "apart", "timm")}
        for name, init in zip(out, (str(first), str(copied), None), strict=True):
            distill.run(training(steps=1, val_shards=None, init=init, shards=few, out=out[name]))

        def judged(name):
            own = EvaluateConfig((out[name],), task=("knn",), k=3, cache=str(cache_folder), shards=shards.pattern)
            result = evaluate.run(own)
            return result.trained_on, any("unknown" in note for note in result.notes())

        assert judged("beside") == (82, False)
        assert judged("apart") == (37, True)
        assert judged("timm") == (37, False)
        shutil.rmtree(first.parent)
        assert judged("beside") == (37, True)

    def test_a_tar_counts_if_any_of_its_views_was_read_and_for_itself_alone(self, settings, shards, training, tmp_path):
        """As with --allow-missing."""
        cache, tar = tmp_path / "cache", f"{shards.folder}/00000{{}}.tar"
        extract.run(settings(cache, views=2, shards=tar.format("[01]")))
        extract.run(settings(cache, recipe="center", views=1))
        made = open_cache(cache)
        for teacher in made.teachers.values():
            record = teacher.record(made.unit(*made.shards()["000001"], settings(cache).kind, 0))
            assert record is not None
            (cache / record.name).unlink()
        distill.run(training(cache=str(cache), steps=1, val_shards=None, allow_missing=True))
        config = EvaluateConfig((training().out,), task=("knn",), k=3, cache=str(cache), shards=tar.format("[12]"))
        both = evaluate.run(config)
        assert both.images == 45
        assert both.trained_on == 40

    def test_students_that_differ_in_their_normalization_alone_have_untrained_ones_of_their_own(
        self, shards, training, tmp_path
    ):
        ways = {"one": "imagenet", "two": "0.5,0.5,0.5/0.5,0.5,0.5", "three": "0.4,0.4,0.4/0.5,0.5,0.5"}
        for name, normalize in ways.items():
            distill.run(training(steps=1, out=str(tmp_path / name), normalize=normalize))
        runs = tuple(str(tmp_path / name) for name in ways)
        result = evaluate.run(EvaluateConfig(runs, task=("knn",), shards=shards.pattern, k=3))
        made = "random student (test_vit, 32 px, patch 16"
        names = [row[0] for row in result.rows if row[1] == "random student"]
        assert names == ["random student", f"{made})", f"{made}, mean/std 0.4,0.4,0.4/0.5,0.5,0.5)"]


def test_images_that_became_readable_are_read(tmp_path, encoder_file, monkeypatch):
    """Though an earlier run kept features of the others."""
    samples = []
    for number in range(18):
        data = io.BytesIO()
        picture(number).save(data, "AVIF" if number < 6 else "PNG")
        samples.append((f"k{number}", data.getvalue(), number % 3))
    tar = str(write_tar(tmp_path / "set/a.tar", samples))
    config = EvaluateConfig((str(encoder_file),), task=("knn",), shards=tar, k=3, features=str(tmp_path / "features"))
    with monkeypatch.context() as patched:
        patched.setattr(decoding, "HAS_AVIF", False)
        assert evaluate.run(config).left_out == 6
    again, anew = evaluate.run(config), evaluate.run(dataclasses.replace(config, features=None))
    assert (again.left_out, again.tasks) == (0, anew.tasks)


def test_a_result_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path, encoder_file, shards):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--out .*/file/x.json: .*/file is a file; name another"):
        evaluate.run(EvaluateConfig((str(encoder_file),), shards=shards.pattern, out=str(tmp_path / "file/x.json")))


def test_shards_that_the_cache_does_not_know_are_told(tmp_path, cache_folder, encoder_file):
    other = make_shards(tmp_path / "other", (9,), name="new-{:d}")
    with pytest.raises(CacheError, match="was not made with shard new-0"):
        evaluate.run(EvaluateConfig((str(encoder_file),), task=("knn",), shards=other.pattern, cache=str(cache_folder)))


@pytest.mark.parametrize("sets", [{}, {"shards": "a", "train": "b", "test": "c"}, {"train": "b"}])
def test_one_set_or_two_must_be_said(sets):
    with pytest.raises(ConfigError, match="leave-one-out"):
        EvaluateConfig(("run",), **sets)
