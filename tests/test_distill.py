"""Stage two end to end on tiny real models: exact resume, exports, refusals, two machines."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from pipelines import distill, extract
from pipelines.command import preflight
from pipelines.training.run_state import RunState
from tests.conftest import CNN, VIT, log_of, losses_of, make_shards, tree, views_of
from unic_cache.cache import open_cache
from unic_cache.config import DistillConfig
from unic_cache.errors import CacheError, ConfigError, UnicCacheError
from unic_cache.student.anatomy import levels_of
from unic_cache.student.backbone import build_encoder, encoder_spec, prepare
from unic_cache.student.export import load_encoder, save_encoder
from unic_cache.student.ladder import Ladder
from unic_cache.student.loss import distillation_loss, drop_uniforms
from unic_cache.student.projectors import Student
from unic_cache.student.run_files import CHECKPOINT

NEWER = {  # settings that older runs lack
    "tf32", "ladder_widths", "projector", "shared_projectors", "kinds", "loss", "balancing", "ema", "clip_grad",
    "accumulate", "compile", "crop_scale", "allow_missing", "from_run", "normalize", "loss_group", "shard_student",
    "keep_checkpoints", "resume_if_any",
}  # fmt: skip


class StopAfter:
    """Asks the run to stop once a given number of steps is done, as a signal would."""

    def __init__(self, monkeypatch, steps: int, number: int = signal.SIGTERM) -> None:
        honest, calls = distill.set_rate, iter(range(1, 1000))

        def counted(*arguments):
            if next(calls) == steps:
                signal.raise_signal(number)
            return honest(*arguments)

        monkeypatch.setattr(distill, "set_rate", counted)


def test_stopped_and_resumed_equals_never_stopped(training, tmp_path, monkeypatch):
    whole = distill.run(training(out=str(tmp_path / "whole"), steps=9))
    StopAfter(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of 9"):
        distill.run(training(out=str(tmp_path / "parts"), steps=9))
    monkeypatch.undo()
    resumed = distill.run(training(out=str(tmp_path / "parts"), steps=9, resume=True))
    assert resumed.loss == whole.loss
    for file in (CHECKPOINT, "encoder.safetensors"):
        one, other = (load_file(tmp_path / folder / file) for folder in ("whole", "parts"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), file
    assert losses_of(tmp_path / "whole")[-2:] == losses_of(tmp_path / "parts")[-2:]


def test_a_teacher_that_all_images_lack_has_no_loss():
    from accelerate import Accelerator

    from pipelines.training.runlog import Meter

    meter = Meter(Accelerator(cpu=True), {"a": ["cls"], "b": ["cls"]})
    means = {"a": {"cls": torch.tensor(0.5)}, "b": {"cls": torch.tensor(0.0)}}
    present_Bn = torch.tensor([[True] * 4, [False] * 4])
    terms = SimpleNamespace(
        loss=torch.tensor(0.5), means=means, coefficients=torch.ones(2, 4), top=torch.zeros(4), present=present_Bn
    )
    meter.add(terms, 4)
    found = meter.read()["teachers"]
    assert (found["a"]["cls"], "cls" in found["b"]) == (0.5, False)


def test_a_half_written_log_line_does_not_stop_a_resume(training, tmp_path, monkeypatch):
    StopAfter(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        distill.run(training(steps=9))
    monkeypatch.undo()
    with open(tmp_path / "run/log.jsonl", "a") as log:
        log.write('{"kind": "train", "st')
    distill.run(training(steps=9, resume=True))
    assert [record["step"] for record in log_of(tmp_path / "run")] == [2, 4, 6, 8, 9]
    assert distill.run(training(steps=9, resume=True)).loss == log_of(tmp_path / "run")[-1]["loss"]


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("how", ["resume", "resume_if_any"])
def test_a_finished_run_opens_and_writes_nothing(training, tmp_path, monkeypatch, capsys, shards, how):
    config = training(steps=2, val_shards=str(shards.folder / "000002.tar"))
    whole = distill.run(config)
    before, times = tree(tmp_path / "run"), {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    again = dataclasses.replace(config, **{how: True})
    with monkeypatch.context() as patch:
        patch.setattr(distill, "opened", None)
        assert distill.run(again) == whole
        preflight.look(dataclasses.replace(again, cache=str(tmp_path / "gone"), shards=str(tmp_path / "gone/*.tar")))
    said = f"{config.out}: this run is finished, after step 2; to train its student further, start another run with "
    assert capsys.readouterr().err.count(f"{said}--from {config.out}\n") == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == times
    encoder, spec, made = load_encoder(whole.encoder)
    for fault in (
        whole.encoder.unlink,
        lambda: save_encoder(whole.encoder, encoder, spec, {**made, "steps": 1}),
    ):
        fault()
        distill.run(again)
        after = tree(tmp_path / "run")
        assert {name: after[name] for name in before if name != "loss.png"} == {
            name: data for name, data in before.items() if name != "loss.png"
        }


def test_a_resume_does_not_mind_tars_that_came_later(training, tmp_path, shards, monkeypatch):
    folder = tmp_path / "tars"
    shutil.copytree(shards.folder, folder)
    StopAfter(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        distill.run(training(shards=str(folder / "*.tar")))
    monkeypatch.undo()
    make_shards(folder, (4,), first=800, name="later-{:d}")
    assert distill.run(training(shards=str(folder / "*.tar"), resume=True)).steps == 6


def test_order_views_and_losses_do_not_depend_on_threads(training, tmp_path):
    for threads in (1, 3):
        distill.run(training(out=str(tmp_path / str(threads)), threads=threads))
    one, three = (load_file(tmp_path / name / "encoder.safetensors") for name in ("1", "3"))
    assert all(torch.equal(one[name], three[name]) for name in one)


def test_the_first_losses_are_those_of_a_loop_without_any_stream(training, tmp_path, cache, shards):
    """One step by hand: rows read one by one, targets decoded alone, the same modules called in plain order."""
    from unic_cache.stream.order import Order
    from unic_cache.stream.rows import usable_rows

    config = training(steps=1, log_every=1, drop_path=0.0, out=str(tmp_path / "one"))
    distill.run(config)
    teachers = [cache.teachers[name] for name in sorted(cache.teachers)]
    from unic_cache.config import Views

    rows, _ = usable_rows(cache, teachers, Views("unic", 32, 0), (0, 1), ["000000", "000001", "000002"])
    wanted = Order(rows, (0, 1), config.seed).samples(0, 8)
    views = np.stack([views_of(shards, item.shard, item.number)[item.row] for item in wanted])
    targets = {}
    for teacher in teachers:
        found = [
            teacher.features(teacher.record(cache.unit(0, item.shard, f"unic-32-0-{item.number:03d}")), [item.row])
            for item in wanted
        ]
        targets[teacher.name] = {kind: torch.cat([one[kind] for one in found]) for kind in ("cls", "patch")}
    spec = encoder_spec("test_vit", 32, 16, 0.0)
    encoder = build_encoder(spec, 0)
    kinds = {teacher.name: teacher.kinds for teacher in teachers}
    student = Student(encoder, Ladder([(64, 64)] * 6, kinds, 0))
    images = prepare(torch.from_numpy(views), spec)
    assert len(levels_of(encoder, images).tokens) == 6
    terms = distillation_loss(student(images), targets, drop_uniforms(0, 0, 8, 2), 0.5, "batch")
    (record,) = log_of(tmp_path / "one")
    assert record["loss"] == pytest.approx(terms.loss.item(), abs=1e-6)
    for name in targets:
        assert record["teachers"][name]["patch"] == pytest.approx(terms.means[name]["patch"].item(), abs=1e-6)


def test_the_student_learns(training, tmp_path):
    distill.run(training(steps=60, batch_size=16, lr=3e-3, log_every=10))
    records = log_of(tmp_path / "run")
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]


@pytest.mark.usefixtures("drawn")
def test_log_holds_losses_coefficients_leaders_speed_and_waiting(training, tmp_path):
    config = training(val_shards=training().shards.replace("*", "000002"), eval_every=3)
    distill.run(config)
    records = log_of(tmp_path / "run")
    assert [(record["kind"], record["step"]) for record in records] == [
        ("train", 2),
        ("val", 3),
        ("train", 4),
        ("train", 6),
        ("val", 6),
    ]
    train = records[0]
    assert {"lr", "loss", "images_per_second", "waiting"} <= set(train)
    assert set(train["teachers"]) == {VIT, CNN}
    assert sum(teacher["top"] for teacher in train["teachers"].values()) == pytest.approx(1)
    for record in records:
        for teacher in record["teachers"].values():
            assert set(teacher) == {"cls", "patch", "coefficient", "top"}
    assert all(teacher["coefficient"] == 1 for teacher in records[-1]["teachers"].values())
    snapshot = json.loads((tmp_path / "run/snapshot.json").read_text())
    assert snapshot["val"] == ["000002"]
    assert "000002" not in snapshot["train"]
    assert (tmp_path / "run/loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_printed_timm_line_gives_the_same_output(training, tmp_path):
    done = distill.run(training())
    encoder, spec, provenance = load_encoder(tmp_path / "run")
    images = torch.randn(3, 3, 32, 32)
    loaded = eval(done.timm_line, {"timm": timm}).eval()  # the line is what a user pastes
    with torch.inference_mode():
        assert (loaded(images) - encoder(images)).abs().max() < 1e-6
    data = timm.data.resolve_model_data_config(loaded)
    assert (data["mean"], data["std"], data["input_size"]) == (spec.mean, spec.std, (3, 32, 32))
    assert spec.patch_size == 16
    assert set(provenance["teachers"]) == {VIT, CNN}
    assert provenance["steps"] == 6


def test_teachers_can_be_chosen_and_are_all_by_default(training, tmp_path):
    distill.run(training(teachers=(CNN,)))
    assert set(log_of(tmp_path / "run")[0]["teachers"]) == {CNN}


def test_balancing_per_image_trains(training):
    assert distill.run(training(balancing="image", steps=2)).loss > 0


def test_bf16_trains(training):
    assert distill.run(training(precision="bf16", steps=2)).loss > 0


def test_the_tracker_gets_the_log(training, tmp_path):
    distill.run(training(tracker="tensorboard", steps=2))
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_epochs_become_steps_and_cycle_through_the_views(training, tmp_path):
    done = distill.run(training(steps=None, epochs=1.5))
    assert done.steps == round(1.5 * 82 / 8)


def test_a_process_without_a_validation_batch_does_not_keep_the_others_waiting(training, tmp_path):
    """Sums of a meter that added nothing: zeros of the right length, with weight zero."""
    from accelerate import Accelerator

    from pipelines.training.runlog import Meter

    found = Meter(Accelerator(cpu=True), {"a": ["cls", "patch"], "b": ["patch"]}).read()
    assert found == {
        "broken": 0,
        "loss": 0.0,
        "teachers": {
            "a": {"cls": 0.0, "patch": 0.0, "coefficient": 0.0, "top": 0.0},
            "b": {"patch": 0.0, "coefficient": 0.0, "top": 0.0},
        },
    }


def test_ladder_widths_are_kept_exported_and_resumed(training, tmp_path, monkeypatch):
    StopAfter(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        distill.run(training(ladder_widths=(24, 40)))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"began with ladder_widths \[24, 40\], not None; keep it to resume"):
        distill.run(training(resume=True))
    distill.run(training(ladder_widths=(24, 40), resume=True))
    assert load_encoder(tmp_path / "run")[2]["config"]["ladder_widths"] == [24, 40]
    state = load_file(tmp_path / "run/checkpoint.safetensors")
    hidden = [len(value) for name, value in state.items() if name.startswith("model.ladder") and "0.weight" in name]
    assert set(hidden) == {24, 40}


def test_a_run_of_an_older_release_is_resumed(training, tmp_path, monkeypatch):
    """Its config lacks what is new."""
    StopAfter(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        distill.run(training())
    monkeypatch.undo()
    path = tmp_path / "run/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: config[key] for key in config if key not in NEWER}))
    assert distill.run(training(resume=True)).steps == 6


class TestTwoMachines:
    def test_the_cache_and_own_shards_elsewhere_train_the_same_student(self, training, tmp_path, cache_folder, shards):
        here = distill.run(training())
        shutil.copytree(cache_folder, tmp_path / "elsewhere/cache")
        shutil.copytree(shards.folder, tmp_path / "elsewhere/tars")
        there = distill.run(
            training(
                cache=str(tmp_path / "elsewhere/cache"),
                shards=str(tmp_path / "elsewhere/tars/*.tar"),
                out=str(tmp_path / "elsewhere/run"),
            )
        )
        assert here.encoder.read_bytes() == there.encoder.read_bytes()

    def test_kept_views_need_no_shards_at_all(self, training, tmp_path, settings):
        growing = make_shards(tmp_path / "tars", (20, 9))
        config = settings(tmp_path / "cache", shards=growing.pattern, keep_views=True)
        extract.run(config)
        with_tars = distill.run(training(cache=config.cache, shards=growing.pattern, out=str(tmp_path / "with")))
        shutil.rmtree(growing.folder)
        without = distill.run(training(cache=config.cache, shards=None, out=str(tmp_path / "without")))
        assert load_tensors(with_tars.encoder) == load_tensors(without.encoder)
        held_out = training(cache=config.cache, shards=None, val_shards="{000001..000001}.tar", out=str(tmp_path / "v"))
        distill.run(held_out)
        assert json.loads((tmp_path / "v/snapshot.json").read_text())["val"] == ["000001"]

    def test_a_run_keeps_its_snapshot_while_the_cache_grows(
        self, training, tmp_path, settings, cache_folder, monkeypatch
    ):
        folder = tmp_path / "cache"
        shutil.copytree(cache_folder, folder)
        whole = distill.run(training(cache=str(folder), out=str(tmp_path / "whole"), steps=20))
        StopAfter(monkeypatch, 11)
        with pytest.raises(KeyboardInterrupt):
            distill.run(training(cache=str(folder), out=str(tmp_path / "parts"), steps=20))
        monkeypatch.undo()
        extract.run(settings(folder, views=3))
        resumed = distill.run(training(cache=str(folder), out=str(tmp_path / "parts"), steps=20, resume=True))
        assert whole.encoder.read_bytes() == resumed.encoder.read_bytes()


def load_tensors(path: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in load_file(path).items()}


class TestFloat32Products:
    def test_are_exact_on_the_cpu_and_recorded(self, training, tmp_path):
        distill.run(training(steps=1))
        assert load_encoder(tmp_path / "run")[2]["float32_products"] == "float32"
        with pytest.raises(ConfigError, match="--tf32 needs a CUDA device, but this run is on cpu"):
            distill.run(training(out=str(tmp_path / "other"), tf32=True))

    def test_are_tf32_for_the_student_alone(self, training, tmp_path, monkeypatch):
        """What the flags say while the student, and while the targets, are computed; no CUDA is needed to see it."""
        from pipelines.training.targets import Targets
        from unic_cache.student.projectors import Student

        seen = {}

        def watched(kind, call):
            def inner(self, *arguments, **options):
                seen[kind] = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
                return call(self, *arguments, **options)

            return inner

        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        monkeypatch.setattr(distill, "uses_tf32", lambda config, accelerator: True)
        monkeypatch.setattr(Targets, "__call__", watched("targets", Targets.__call__))
        monkeypatch.setattr(Student, "forward", watched("student", Student.forward))
        distill.run(training(steps=1))
        assert seen == {"targets": (False, False), "student": (True, True)}
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


class TestRefusals:
    def test_of_an_uncommitted_shard(self, training, tmp_path, cache_folder):
        shutil.copytree(cache_folder, tmp_path / "cache")
        folder = open_cache(cache_folder).teachers[VIT].member.folder
        (tmp_path / "cache" / folder / "commits/000000/unic-32-0-001/000001.json").unlink()
        message = rf"{VIT} has no view unic-32-0-001 of shard 000001: .*run the same `unic-cache extract` again"
        with pytest.raises(CacheError, match=message):
            distill.run(training(cache=str(tmp_path / "cache")))

    def test_of_a_flipped_byte_name_teacher_view_shard_and_row(self, training, tmp_path, cache_folder):
        shutil.copytree(cache_folder, tmp_path / "cache")
        folder = tmp_path / "cache" / open_cache(cache_folder).teachers[VIT].member.folder
        path = folder / "features.zarr/000000/unic-32-0-000/patch/c.0.0.0.0"
        data = bytearray(path.read_bytes())
        data[20 * 4 * 64 * 2 + 5] ^= 1
        path.write_bytes(bytes(data))
        message = (
            r"timm\.test_vit@32, view unic-32-0-000 of shard 000000, patch, rows 20: their bytes are not as committed"
        )
        with pytest.raises(CacheError, match=message):
            distill.run(training(cache=str(tmp_path / "cache"), steps=20))

    def test_of_other_pixels_name_shard_and_row(self, training, tmp_path, shards):
        folder = tmp_path / "tars"
        shutil.copytree(shards.folder, folder)
        path = folder / "000001.tar"
        from tests.conftest import picture, png, write_tar

        samples = [(f"image{n:05d}", png(picture(n)), n % 3) for n in range(37, 77)]
        samples[11] = (samples[11][0], png(picture(7)), 0)
        write_tar(path, samples)
        message = r"shard 000001, row 11: the pixels have checksum [0-9a-f]{8} here, but the teachers saw [0-9a-f]{8}"
        with pytest.raises(CacheError, match=message):
            distill.run(training(shards=str(folder / "*.tar"), steps=20))

    def test_of_other_decoders_unless_a_tolerance_is_given(self, training, tmp_path, monkeypatch, capsys):
        from unic_cache.views.augment import make_view

        monkeypatch.setattr(
            "unic_cache.stream.pixels.make_view", lambda *a: np.bitwise_xor(make_view(*a), 1, out=a[-1])
        )
        with pytest.raises(CacheError, match=r"differ by up to 1 levels of 255.*--pixel-tolerance 1"):
            distill.run(training())
        distill.run(training(pixel_tolerance=1, steps=2))
        kept = json.loads((tmp_path / "run/config.json").read_text())["pixel_difference"]
        assert kept["largest"] == 1
        assert kept["images"] > 0
        said = capsys.readouterr().err
        assert (
            f"rows are no longer checked one by one, since their checksums would differ; only the {kept['images']}"
            in said
        )

    def test_of_other_shards(self, training, tmp_path):
        other = make_shards(tmp_path / "other", (37,), first=700)
        with pytest.raises(CacheError, match=r"made with other shards: 000000 .*row 0"):
            distill.run(training(shards=other.pattern))

    def test_of_shards_that_are_not_in_the_cache(self, training, tmp_path):
        other = make_shards(tmp_path / "other", (5,), name="new-{:02d}")
        with pytest.raises(CacheError, match="was not made with shard new-00"):
            distill.run(training(shards=other.pattern))

    def test_of_a_view_that_is_not_there(self, training):
        with pytest.raises(CacheError, match=r"--views 3, but only 2 are there of every teacher; .*extract --views 3`"):
            distill.run(training(views=3))

    def test_of_views_that_one_teacher_alone_has_are_not_used_and_told(self, training, settings, capsys):
        config = training(steps=1)
        only = {"teachers": (VIT,), "weights": settings(config.cache).weights[:1]}
        extract.run(settings(Path(config.cache), views=3, **only))
        distill.run(config)
        assert f"the 2 views that all teachers have are used; {VIT} has 3" in capsys.readouterr().err

    def test_of_a_recipe_that_is_not_there_list_what_is(self, training):
        with pytest.raises(CacheError, match=r"match recipe light.*center \(size 32, seed 0\), unic \(size 32, "):
            distill.run(training(recipe="light"))

    def test_of_a_teacher_that_is_not_there_list_the_others(self, training):
        with pytest.raises(CacheError, match=f"no teacher 'dino'; it has {CNN}, {VIT}"):
            distill.run(training(teachers=("dino",)))

    def test_of_a_folder_without_a_cache(self, training, tmp_path):
        with pytest.raises(CacheError, match=r"no cache is here .*make one with `unic-cache extract`"):
            distill.run(training(cache=str(tmp_path / "nothing")))

    def test_of_an_image_size_that_the_patch_size_does_not_divide(self, training):
        with pytest.raises(ConfigError, match=r"30 px cannot be cut into patches of 16 px"):
            distill.run(training(img_size=30))

    def test_of_a_folder_that_holds_a_run(self, training):
        distill.run(training(steps=1))
        with pytest.raises(ConfigError, match="already holds a run; continue it with --resume"):
            distill.run(training(steps=1))

    def test_of_resuming_with_other_settings_name_both(self, training):
        distill.run(training(steps=1))
        with pytest.raises(ConfigError, match=r"began with lr 0.001, not 0.5"):
            distill.run(training(steps=1, lr=0.5, resume=True))

    def test_of_resuming_nothing(self, training):
        with pytest.raises(ConfigError, match="no run to resume here"):
            distill.run(training(resume=True))

    def test_of_divergence_say_what_to_change(self, training, monkeypatch):
        monkeypatch.setattr(DistillConfig, "peak_lr", lambda config: 1e30)
        with pytest.raises(UnicCacheError, match=r"the loss is (nan|inf) at step \d+.*Lower --lr"):
            distill.run(training(steps=8, warmup=0.0))

    def test_of_weights_that_the_last_update_spoiled_leave_the_checkpoint(self, training, tmp_path, monkeypatch):
        distill.run(training(steps=6, save_every=3))
        before = {name: data for name, data in tree(tmp_path / "run").items() if str(name).endswith(".safetensors")}

        def spoil(state) -> None:
            with torch.no_grad():
                next(state.model.parameters()).fill_(float("nan"))

        monkeypatch.setattr(RunState, "update_average", spoil)
        with pytest.raises(
            UnicCacheError, match=r"weights are not finite after step 1: training diverged\. Lower --lr"
        ):
            distill.run(training(steps=1, out=str(tmp_path / "other")))
        assert not list((tmp_path / "other").glob("*.safetensors"))
        assert {name: data for name, data in tree(tmp_path / "run").items() if name in before} == before

    def test_of_a_mixed_cache(self, training, tmp_path, cache_folder):
        shutil.copytree(cache_folder, tmp_path / "cache")
        folder = tmp_path / "cache" / open_cache(cache_folder).teachers[VIT].member.folder
        calibration = open_cache(cache_folder).teachers[VIT].calibration
        moved = dataclasses.replace(calibration, mean={kind: values + 1 for kind, values in calibration.mean.items()})
        (folder / "calibration.npz").write_bytes(moved.to_bytes())
        with pytest.raises(
            CacheError, match=r"made with a calibration of checksum \d+, but .* has \d+: two caches were"
        ):
            distill.run(training(cache=str(tmp_path / "cache")))

    def test_of_a_teacher_whose_calibration_is_lost_unless_others_are_named(self, training, tmp_path, cache_folder):
        shutil.copytree(cache_folder, tmp_path / "cache")
        teachers = open_cache(cache_folder).teachers
        (tmp_path / "cache" / teachers[VIT].member.calibration_name).unlink()
        lost = {"cache": str(tmp_path / "cache"), "steps": 1}
        with pytest.raises(CacheError, match=rf"the calibration of {VIT} is lost .*The same `unic-cache extract`"):
            distill.run(training(**lost))
        others = tuple(name for name in teachers if name != VIT)
        assert distill.run(training(teachers=others, **lost)).steps == 1

    def test_never_touch_the_cache(self, training):
        config = training(steps=2)
        before = tree(Path(config.cache))
        distill.run(config)
        assert tree(Path(config.cache)) == before
