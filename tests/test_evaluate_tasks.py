"""Every task through the whole pipeline: equal to features taken directly, kept between runs, refused if unsound."""

import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from webdataset import TarWriter

from pipelines import evaluate, extract
from pipelines.evaluating import encoders, measuring
from tests.conftest import VIT, picture, png
from unic_cache.config import EvaluateConfig, Views
from unic_cache.errors import ConfigError, ShardError
from unic_cache.evaluate.linear import linear
from unic_cache.evaluate.retrieval import retrieval
from unic_cache.evaluate.segmentation import segmentation
from unic_cache.evaluate.task import Examples, Settings
from unic_cache.student.backbone import build_encoder, encoder_spec, prepare, tokens
from unic_cache.student.export import save_encoder
from unic_cache.views.augment import make_view

STEPS = 20  # of a head


def grey(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def mask_of(number: int) -> np.ndarray:
    return np.asarray(picture(number).convert("L")) // 86  # classes 0, 1, 2


def depth_of(number: int) -> np.ndarray:
    return np.asarray(picture(number).convert("L"), np.float32) / 32


def pack(path, numbers, cls=True, masks=True, depths=True, changed=None):
    """A tar of synthetic images with all labels, and with `changed` members of some samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(str(path), mtime=0, encoder=False) as tar:
        for number in numbers:
            sample = {"__key__": f"image{number:05d}", "png": png(picture(number))}
            if cls:
                sample["cls"] = str(number % 3).encode()
            if masks:
                sample["mask.png"] = grey(mask_of(number))
            if depths:
                buffer = io.BytesIO()
                np.save(buffer, depth_of(number))
                sample["depth.npy"] = buffer.getvalue()
            tar.write({**sample, **(changed or {}).get(number, {})})
    return path


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    spec = encoder_spec("test_vit", 32, 16)
    path = tmp_path_factory.mktemp("student") / "run" / "encoder.safetensors"
    path.parent.mkdir()
    save_encoder(path, build_encoder(spec, 5), spec, {})
    return str(path.parent)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return str(pack(folder / "train/train.tar", range(24))), str(pack(folder / "test/test.tar", range(24, 40)))


def config(student, sets, **more):
    return EvaluateConfig((student,), train=sets[0], test=sets[1], **{"k": 3, "head_steps": STEPS, **more})


def direct(numbers) -> Examples:
    """The student's features of images, taken without the pipeline."""
    spec = encoder_spec("test_vit", 32, 16, 0.0)
    views = np.stack([make_view(picture(n), Views("center", 32, 0), 0, 0) for n in numbers])
    with torch.inference_mode():
        summary, patches = tokens(build_encoder(spec, 5).eval(), prepare(torch.from_numpy(views), spec))
    masks = [np.asarray(Image.fromarray(mask_of(n)).crop((0, 0, 32, 40))) for n in numbers]
    square = [mask[4:36] for mask in masks]
    return Examples(
        summary.clone(),
        torch.tensor([n % 3 for n in numbers]),
        patches.numpy().astype(np.float16),
        (2, 2),
        np.stack(square),
    )


def test_by_default_every_task_runs_that_the_labels_allow(student, sets):
    result = evaluate.run(config(student, sets))
    assert list(result.tasks) == ["knn", "linear", "retrieval", "segmentation", "depth"]
    assert [row[0] for row in result.rows] == ["random student", "student"]
    for task in result.tasks.values():
        assert (task.images, set(task.encoders)) == (16, {"random student", "student"})
        for score in task.encoders.values():
            for found in score.metrics.values():
                assert found.low <= found.mean <= found.high
    assert result.tasks["knn"].metric == "3-NN"
    assert result.tasks["depth"].unit == "m"


def test_every_task_equals_its_function_on_features_taken_directly(student, sets):
    result = evaluate.run(config(student, sets, task=("linear", "retrieval", "segmentation")))
    train, test = direct(range(24)), direct(range(24, 40))
    for name, task in (("linear", linear), ("retrieval", retrieval), ("segmentation", segmentation)):
        for metric, one in task(train, test, Settings(k=3, steps=STEPS)).items():
            expected = float(one.statistic(np.asarray(one.sums_NF.sum(axis=0)).reshape(-1)))
            assert result.tasks[name].encoders["student"].metrics[metric].mean == pytest.approx(expected, abs=1e-3)


def test_a_run_that_is_called_like_a_teacher_goes_by_its_path(student, sets, tmp_path, settings):
    pattern = "::".join(sets)
    extract.run(settings(tmp_path / "cache", shards=pattern, recipe="center", views=1, calibration_images=20))
    spec = encoder_spec("test_vit", 32, 16)
    for seed, name in enumerate((VIT, "random student"), 7):
        (tmp_path / name).mkdir()
        save_encoder(tmp_path / name / "encoder.safetensors", build_encoder(spec, seed), spec, {})
    runs = (student, str(tmp_path / VIT), str(tmp_path / "random student"))
    both = dataclasses.replace(config(student, sets, task=("retrieval",)), encoder=runs, cache=str(tmp_path / "cache"))
    together = evaluate.run(both)
    assert [row[0] for row in together.rows if row[1] == "student"] == ["run", *runs[1:]]
    apart = evaluate.run(dataclasses.replace(both, encoder=(student,)))
    for name in (VIT, "random student"):
        assert together.tasks["retrieval"].encoders[name] == apart.tasks["retrieval"].encoders[name]


def test_one_set_is_asked_leave_one_out_or_split_by_class(student, tmp_path):
    path = pack(tmp_path / "one.tar", range(30), depths=False)
    one = EvaluateConfig((student,), shards=str(path), k=3, head_steps=STEPS)
    result = evaluate.run(one)
    assert {task: found.images for task, found in result.tasks.items()} == {
        "knn": 30, "linear": 6, "retrieval": 30, "segmentation": 6,
    }  # fmt: skip
    assert evaluate.run(one).to_json() == result.to_json()


def test_images_are_used_by_the_tasks_that_they_have_labels_for(student, tmp_path):
    """As in a set of classified and a set of segmented pictures, joined in one pattern."""
    pack(tmp_path / "a.tar", range(12), masks=False, depths=False)
    pack(tmp_path / "b.tar", range(12, 22), cls=False, depths=False)
    pack(tmp_path / "c.tar", range(22, 25), cls=False, masks=False, depths=False)
    result = evaluate.run(EvaluateConfig((student,), shards=str(tmp_path / "*.tar"), k=3, head_steps=STEPS))
    assert {task: found.images for task, found in result.tasks.items()} == {
        "knn": 12, "linear": 3, "retrieval": 12, "segmentation": 2,
    }  # fmt: skip


def test_students_are_called_by_their_folders_and_compared_in_pairs(student, sets, tmp_path):
    spec = encoder_spec("test_vit", 32, 8)
    (tmp_path / "other").mkdir()
    save_encoder(tmp_path / "other/encoder.safetensors", build_encoder(spec, 6), spec, {})
    both = dataclasses.replace(config(student, sets, task=("knn",)), encoder=(student, str(tmp_path / "other")))
    result = evaluate.run(both)
    names = [row[0] for row in result.rows]
    assert names[0] == "random student"
    assert names[1].startswith("random student (test_vit, 32 px, patch 8)")
    assert names[2:] == ["run", "other"]
    task = result.to_json()["tasks"]["knn"]
    assert len(task["pairs"]) == 6
    values = {name: one["value"] for name, one in task["encoders"].items()}
    for pair in task["pairs"]:
        assert pair["difference"] == pytest.approx(values[pair["one"]] - values[pair["other"]])
        assert pair["low"] <= pair["difference"] <= pair["high"]


def test_the_json_has_gains_over_the_best_teacher(student, shards, cache_folder, capsys):
    result = evaluate.run(
        EvaluateConfig((student,), shards=shards.pattern, cache=str(cache_folder), task=("knn",), k=5)
    )
    data = json.loads(json.dumps(result.to_json()))
    knn = data["tasks"]["knn"]
    teachers = {name: one["value"] for name, one in knn["encoders"].items() if one["kind"] == "teacher"}
    best = max(teachers, key=teachers.get)
    assert set(knn["gain"]) == {"random student", "student"}
    for name, gain in knn["gain"].items():
        assert gain["over"] == best
        assert gain["percent"] == pytest.approx(100 * (knn["encoders"][name]["value"] / teachers[best] - 1))
        assert gain["low"] <= gain["percent"] <= gain["high"]
    assert [one["accuracy"]["5"]["mean"] for one in data["encoders"]] == [
        one["value"] for one in knn["encoders"].values()
    ]
    evaluate.show(result)
    printed = capsys.readouterr()
    assert "gain over the best teacher" in printed.out
    assert f"{VIT} is read from the cache: mean cosine to its own features cls " in printed.err


def test_a_cached_teacher_equals_the_same_weights_run_here(student, shards, cache_folder, weights):
    both = EvaluateConfig(
        (VIT,),
        shards=shards.pattern,
        cache=str(cache_folder),
        teachers=(VIT,),
        weights=((VIT, str(weights[VIT])),),
        task=("knn", "retrieval"),
        k=5,
    )
    result = evaluate.run(both)
    assert [row[:2] for row in result.rows] == [(VIT, "teacher"), (f"{VIT} (run here)", "network")]
    for task in result.tasks.values():
        cached, here = (score.metrics[task.metric].mean for score in task.encoders.values())
        assert cached == pytest.approx(here, abs=0.05)


class TestFeaturesAreKept:
    @pytest.fixture
    def ran(self, monkeypatch):
        """Counts the batches that students' networks see."""
        seen = []

        def counted(model, images):
            seen.append(len(images))
            return tokens(model, images)

        monkeypatch.setattr(encoders, "tokens", counted)
        return seen

    def test_a_second_run_and_another_task_start_from_them(self, student, sets, tmp_path, ran):
        once = config(student, sets, features=str(tmp_path / "kept"), task=("segmentation",))
        first = evaluate.run(once)
        assert sum(ran) == 2 * 40  # both students, train and test
        ran.clear()
        assert evaluate.run(once).to_json() == first.to_json()
        evaluate.run(dataclasses.replace(once, task=("knn", "linear")))
        assert ran == []

    def test_patch_tokens_are_added_for_a_task_that_needs_them(self, student, sets, tmp_path, ran):
        once = config(student, sets, features=str(tmp_path / "kept"), task=("knn",))
        evaluate.run(once)
        assert not list((tmp_path / "kept").rglob("patches.npy"))
        ran.clear()
        evaluate.run(dataclasses.replace(once, task=("segmentation",)))
        assert sum(ran) == 80
        assert len(list((tmp_path / "kept").rglob("patches.npy"))) == 4

    def test_an_encoder_beside_another_or_twice_is_not_computed_again(self, student, sets, tmp_path, ran):
        once = config(student, sets, features=str(tmp_path / "kept"), task=("knn",))
        evaluate.run(once)
        ran.clear()
        copies = []
        for name in ("1", "2"):
            folder = tmp_path / ("long" * 20) / name
            folder.mkdir(parents=True)
            copies.append(str(shutil.copy(f"{student}/encoder.safetensors", folder / "copy.safetensors")))
        for features in (once.features, None):
            both = evaluate.run(dataclasses.replace(once, encoder=tuple(copies), features=features))
            scores = both.tasks["knn"].encoders
            assert scores[copies[0]] == scores[copies[1]]
            assert sum(ran) == (0 if features else 80)

    @pytest.mark.parametrize("start", [b"", b"PK\x03\x04", b"\x80\x04", b"\x93NUMPY\x01\x00v\x00" + 40 * b"{"])
    def test_a_damaged_file_is_computed_again(self, student, sets, tmp_path, ran, start):
        once = config(student, sets, features=str(tmp_path / "kept"), task=("knn",))
        first = evaluate.run(once)
        ran.clear()
        for path in (tmp_path / "kept").rglob("summary.npy"):
            path.write_bytes(start + path.read_bytes()[len(start) :] if start else b"")
        assert evaluate.run(once).to_json() == first.to_json()
        assert sum(ran) == 80

    @pytest.mark.parametrize("whole", [0, 50, 200])
    def test_damaged_checksums_of_pixels_are_made_again(self, student, sets, tmp_path, ran, whole):
        once = config(student, sets, features=str(tmp_path / "kept"), task=("knn",))
        first = evaluate.run(once)
        ran.clear()
        kept = {path: path.read_bytes() for path in (tmp_path / "kept").rglob("pixels.npz")}
        for path, data in kept.items():
            path.write_bytes(data[:whole])
        assert evaluate.run(once).to_json() == first.to_json()
        assert ran == []
        assert {path: path.read_bytes() for path in kept} == kept

    def test_masks_are_not_kept(self, student, sets, tmp_path):
        evaluate.run(config(student, sets, features=str(tmp_path / "kept"), task=("segmentation",)))
        names = {path.name for path in (tmp_path / "kept").rglob("*") if path.is_file()}
        assert names == {"pixels.npz", "summary.npy", "patches.npy"}

    def test_other_pictures_under_the_same_names_are_computed(self, student, sets, tmp_path, ran):
        one = pack(tmp_path / "a/one.tar", range(12), masks=False, depths=False)
        once = EvaluateConfig((student,), shards=str(one), features=str(tmp_path / "kept"), task=("knn",), k=3)
        evaluate.run(once)
        ran.clear()
        pack(one, range(12), masks=False, depths=False, changed={7: {"png": png(picture(70))}})
        kept = evaluate.run(once)
        assert sum(ran) == 24
        assert kept.to_json() == evaluate.run(dataclasses.replace(once, features=None)).to_json()

    def test_other_weights_under_the_same_name_are_computed(self, sets, tmp_path, ran):
        spec = encoder_spec("test_vit", 32, 16)
        (tmp_path / "run").mkdir()
        found = []
        for seed in (5, 6):
            save_encoder(tmp_path / "run/encoder.safetensors", build_encoder(spec, seed), spec, {})
            once = config(str(tmp_path / "run"), sets, features=str(tmp_path / "kept"), task=("retrieval",))
            ran.clear()
            found.append(evaluate.run(once).tasks["retrieval"].encoders["student"])
            assert sum(ran) == (80 if seed == 5 else 40)
        assert found[0] != found[1]

    def test_an_image_that_only_a_cache_calls_bad_is_kept_for_others(self, student, tmp_path, settings):
        path = pack(tmp_path / "tars/a.tar", range(12), masks=False, depths=False)
        pack(path, range(12), masks=False, depths=False, changed={4: {"png": b"nothing"}})
        extract.run(settings(tmp_path / "cache", shards=str(path), recipe="center", views=1, calibration_images=10))
        once = EvaluateConfig((student,), shards=str(path), cache=str(tmp_path / "cache"), k=3, task=("knn",))
        kept = dataclasses.replace(once, features=str(tmp_path / "kept"))
        results = [evaluate.run(one).to_json() for one in (once, kept, kept)]
        assert results[0]["left_out"] == 1
        assert results[0] == results[1] == results[2]


class TestWhatIsRefused:
    def test_a_task_without_its_labels(self, student, tmp_path):
        path = str(pack(tmp_path / "a.tar", range(6), masks=False, depths=False))
        for task, flag in (("segmentation", "--masks"), ("depth", "--depths")):
            with pytest.raises(ShardError, match=rf"a.tar: none of its images has what {task} needs.*{flag} DIR"):
                evaluate.run(EvaluateConfig((student,), shards=path, task=(task,)))
        path = str(pack(tmp_path / "b.tar", range(6), cls=False))
        with pytest.raises(ShardError, match=r"0 images have a label"):
            evaluate.run(EvaluateConfig((student,), shards=path, task=("linear",)))

    def test_a_mask_of_another_size_than_its_image(self, student, tmp_path):
        wide = {"mask.png": grey(np.zeros((40, 33), np.uint8))}
        path = str(pack(tmp_path / "a.tar", range(8), depths=False, changed={5: wide}))
        with pytest.raises(ShardError, match=r"a.tar, row 5 \(image00005.png\).*33 x 40.*32 x 40"):
            evaluate.run(EvaluateConfig((student,), shards=path, task=("segmentation",)))

    def test_a_test_image_that_is_in_train_too(self, student, tmp_path):
        train = str(pack(tmp_path / "a.tar", range(12)))
        test = str(pack(tmp_path / "b.tar", range(11, 18)))
        pair = EvaluateConfig((student,), train=train, test=test, k=3)
        for task in ("linear", "segmentation", "depth"):
            with pytest.raises(ShardError, match=rf"{task}: 1 of 7 test images are in --train too.*b.tar, row 0"):
                evaluate.run(dataclasses.replace(pair, task=(task,)))

    def test_a_tar_that_is_named_twice(self, student, sets):
        with pytest.raises(ShardError, match="a tar is named twice"):
            evaluate.run(EvaluateConfig((student,), shards=f"{sets[0]}::{sets[0]}"))

    def test_what_leaves_no_task(self, student, tmp_path, settings):
        train = str(pack(tmp_path / "a.tar", range(12), cls=False, depths=False))
        test = str(pack(tmp_path / "b.tar", range(11, 18), cls=False, depths=False))
        with pytest.raises(ShardError, match=r"b.tar: nothing can be measured: segmentation had to be left out"):
            evaluate.run(EvaluateConfig((student,), train=train, test=test))
        one = settings(
            tmp_path / "cache", shards=train, recipe="center", views=1, calibration_images=12, tokens=2,
            teachers=(VIT,), weights=settings(tmp_path).weights[:1],
        )  # fmt: skip
        extract.run(one)
        asked = EvaluateConfig(shards=train, cache=one.cache)
        with pytest.raises(ShardError, match="nothing can be measured"):
            evaluate.run(asked)
        with pytest.raises(ConfigError, match="segmentation: no encoder has a whole grid of patch tokens"):
            evaluate.run(dataclasses.replace(asked, task=("segmentation",)))

    def test_a_class_in_test_that_train_lacks(self, student, tmp_path):
        train = str(pack(tmp_path / "a.tar", [0, 1, 3, 4, 6, 7]))
        test = str(pack(tmp_path / "b.tar", [9, 10, 11]))
        for task in ("knn", "linear"):
            with pytest.raises(
                ShardError, match=r"b.tar, row 2 \(image00011.png\) is of class 2, of which .*a.tar has"
            ):
                evaluate.run(EvaluateConfig((student,), train=train, test=test, task=(task,)))

    def test_an_encoder_named_twice_and_none_at_all(self):
        with pytest.raises(ConfigError, match="twice"):
            EvaluateConfig(("a", "a"), shards="x")
        with pytest.raises(ConfigError, match="nothing to evaluate"):
            EvaluateConfig((), shards="x")


def test_a_metric_without_an_interval_is_told_with_its_task(student, sets, tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((40, 32), np.float32))
    unknown = {n: {"depth.npy": buffer.getvalue()} for n in range(32, 40)}
    test = str(pack(tmp_path / "test.tar", range(30, 40), masks=False, changed=unknown))
    with pytest.raises(ConfigError, match=r"depth: the metric is undefined in .*name the other tasks with --task"):
        evaluate.run(config(student, (sets[0], test)))


def test_what_would_be_in_vain_is_told_at_once(student, sets, tmp_path):
    with pytest.raises(ConfigError, match="--teacher chooses among a cache's teachers: add --cache"):
        config(student, sets, teachers=("dino",))
    with pytest.raises(ConfigError, match="is a folder; name the file to write"):
        evaluate.run(config(student, sets, out=str(tmp_path)))


def test_a_split_keeps_twins_together_and_every_class_in_training(student, tmp_path):
    changed = {n: {"png": png(picture(n % 10))} for n in range(10, 20)}  # 0 to 9 again
    path = str(pack(tmp_path / "a.tar", range(20), depths=False, masks=False, changed=changed))
    result = evaluate.run(EvaluateConfig((student,), shards=path, task=("linear",)))
    assert result.tasks["linear"].images % 2 == 0


def test_an_image_that_training_needs_takes_its_twins_with_it(student, tmp_path, monkeypatch):
    """Each class but 0 is in one picture only, which is there twice."""
    sides: list[measuring.Sides] = []
    chosen = measuring.sides_of
    monkeypatch.setattr(measuring, "sides_of", lambda *args: sides.append(chosen(*args)) or sides[-1])
    changed = {}
    for n in range(20):
        mask = np.zeros((40, 32), np.uint8)
        mask[10:30, 5:25] = n % 10 if n % 10 < 5 else 0
        changed[n] = {"png": png(picture(n % 10)), "mask.png": grey(mask)}
    for seed in range(3):
        path = str(pack(tmp_path / "a.tar", range(20), cls=False, depths=False, changed=changed))
        evaluate.run(EvaluateConfig((student,), shards=path, task=("segmentation",), head_steps=STEPS, seed=seed))
        train, test = ({row % 10 for row in rows.tolist()} for rows in (sides[-1].train, sides[-1].test))
        assert not train & test


@pytest.fixture(scope="module")
def analysis(student, sets):
    return evaluate.run(config(student, sets, task=("knn",), analysis=True))


class TestAnalysis:
    def test_pruning_begins_at_the_student_and_components_end_at_it(self, analysis):
        found = analysis.analysis["student"]
        accuracy = analysis.encoders[-1].accuracy[3].mean
        assert list(found["pruning"]) == ["metric", *map(str, range(0, 100, 10))]
        assert found["pruning"]["0"] == pytest.approx(accuracy)
        assert found["components"][str(analysis.encoders[-1].dim)] == pytest.approx(accuracy)
        assert "pruning" not in analysis.analysis["random student"]

    def test_dimensions_rise_with_the_variance_they_hold(self, analysis):
        for name in ("student", "random student"):
            for kind in ("summary", "patches"):
                own = analysis.analysis[name][kind]
                counts = list(own["dimensions"].values())
                assert counts == sorted(counts)
                assert 1 <= own["effective_rank"] <= own["channels"]

    def test_pruned_students_are_no_encoders_of_the_table(self, analysis):
        assert [row[0] for row in analysis.rows] == ["random student", "student"]
        assert json.dumps(analysis.to_json()["analysis"])


def test_analysis_of_images_of_one_class_has_no_accuracies(student, tmp_path, capsys):
    path = str(pack(tmp_path / "a.tar", range(12), depths=False, changed={n: {"cls": b"0"} for n in range(12)}))
    result = evaluate.run(EvaluateConfig((student,), shards=path, analysis=True, head_steps=STEPS))
    assert list(result.tasks) == ["segmentation"]
    assert set(result.analysis["student"]) == {"kind", "summary", "patches"}
    assert "analysis: no accuracies, since" in capsys.readouterr().err


def test_classes_need_names_only_where_images_have_classes(student, tmp_path):
    pack(tmp_path / "named/a.tar", range(12), masks=False, depths=False)
    (tmp_path / "named/classes.json").write_text('{"0": "a", "1": "b", "2": "c"}')
    pack(tmp_path / "masked/b.tar", range(12, 22), cls=False, depths=False)
    both = f"{tmp_path}/named/*.tar::{tmp_path}/masked/*.tar"
    result = evaluate.run(EvaluateConfig((student,), shards=both, task=("knn", "segmentation"), k=3, head_steps=STEPS))
    assert set(result.tasks) == {"knn", "segmentation"}


def test_results_are_written_as_printed(student, sets, tmp_path):
    result = evaluate.run(config(student, sets, task=("knn",), out=str(tmp_path / "found.json")))
    assert json.loads((tmp_path / "found.json").read_text()) == json.loads(json.dumps(result.to_json()))


def test_a_damaged_number_in_a_kept_file_is_computed_again(student, sets, tmp_path):
    once = config(student, sets, task=("segmentation",), features=str(tmp_path / "kept"))
    first = evaluate.run(once).to_json()
    for path in (tmp_path / "kept").rglob("*.npy"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x40
        path.write_bytes(data)
    assert evaluate.run(once).to_json() == first


def test_views_that_are_resized_for_an_encoder_are_told(student, sets, capsys):
    evaluate.run(config(student, sets, task=("knn",), size=48))
    told = capsys.readouterr().err
    assert "views of 48 px are resized to the input of random student (32 px), student (32 px)" in told
