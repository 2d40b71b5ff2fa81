"""`export`: what it writes is loaded by the software it is for, and gives the student's own values."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import cli
from pipelines import distill, export, provenance
from pipelines.command.run_folder import run_settings
from pipelines.export import README
from pipelines.exporting import hub, onnx_file
from pipelines.exporting.places import placeless
from pipelines.extracting.students import init_origin
from tests import tiny_models  # noqa: F401 (timm then knows them)
from tests.conftest import CNN, VIT, make_shards, picture, tree
from tests.test_distill import StopAfter
from unic_cache.config import DistillConfig, ExportConfig, InspectConfig
from unic_cache.errors import ConfigError, UnicCacheError
from unic_cache.evaluate.results import UNKNOWN
from unic_cache.student.backbone import build_encoder, embed, encoder_spec, tokens
from unic_cache.student.export import load_encoder, save_encoder
from unic_cache.student.run_files import CHECKPOINT, CONFIG, ENCODER, MODEL
from unic_cache.student.timm_layout import lay_out_run
from unic_cache.teachers.weights import state_sha256

slow = pytest.mark.slow
PROVENANCE = {
    "teachers": {
        "dino": {"licence": "Apache-2.0", "weights_sha256": "ab" * 32, "published": "https://example.org/dino"},
        "clip": {"licence": "MIT", "weights_sha256": "cd" * 32, "published": "https://example.org/clip"},
    },
    "images": 10, "steps": 4, "views": {"recipe": "unic", "size": 32, "numbers": [0, 1]},
    "config": {"steps": 4, "epochs": 200.0, "batch_size": 8, "weights": [["dino", "/home/someone/dino.pth"]]},
}  # fmt: skip
FAMILIES = [  # name, pixels of an image, of a patch
    ("test_vit", 32, 8),
    ("test_resnet", 64, None),
    *(
        pytest.param(*one, marks=slow)
        for one in [
            ("vit_small_patch16_dinov3.lvd1689m", 64, 16),
            ("eva02_tiny_patch14_224", 56, 14),
            ("vit_pwee_patch16_reg1_gap_256", 64, 16),
            ("vit_pe_core_tiny_patch16_384", 64, 16),
            ("tiny_swin", 64, None),
            ("test_convnext", 64, None),
            ("test_efficientnet", 64, None),
            ("mobilenetv4_conv_small_035", 64, None),
        ]
    ),
]
CONVERTED = [  # small networks: the conversion is slow
    ("test_vit", 32, 8),
    *(
        pytest.param(*one, marks=slow)
        for one in [
            ("test_resnet", 64, None),
            ("tiny_dinov3", 64, 16),
            ("tiny_eva02", 56, 14),
            ("tiny_vit_reg_gap", 64, 16),
            ("tiny_pe", 64, 16),
            ("tiny_swin", 64, None),
            ("test_convnext", 64, None),
            ("test_efficientnet", 64, None),
        ]
    ),
]


def file_of(folder: Path, name: str, size: int, patch: int | None = None, **changes: Any) -> Path:
    """An exported encoder whose every tensor differs from what timm begins with."""
    spec = encoder_spec(name, size, patch)
    encoder = build_encoder(spec, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in (*encoder.parameters(), *encoder.buffers()):
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=generator) * 0.01)
    folder.mkdir(exist_ok=True)
    save_encoder(folder / ENCODER, encoder, spec, {**PROVENANCE, **changes})
    return folder / ENCODER


def exported(run: Path, out: Path, form: str = "timm", **changes: Any) -> export.Exported:
    return export.run(ExportConfig(str(run), str(out), form, **changes))


def images_of(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def check_timm_loads(folder: Path, student: Path) -> None:
    """timm's own model of the folder is the student, with its pixels; a classifier can be put on it."""
    encoder, spec, _ = load_encoder(student)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = images_of(spec.img_size)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), embed(encoder, images), atol=1e-6, rtol=0)
    found = timm.data.resolve_model_data_config(model)
    assert tuple(found["input_size"]) == (3, spec.img_size, spec.img_size)
    assert (tuple(found["mean"]), tuple(found["std"]), found["crop_pct"]) == (spec.mean, spec.std, 1.0)
    labelled = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=5).eval()
    with torch.inference_mode():
        assert labelled(images).shape == (2, 5)
        features = labelled.forward_head(labelled.forward_features(images), pre_logits=True)
        torch.testing.assert_close(features, embed(encoder, images), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache_folder, shards) -> DistillConfig:
    """A finished run that keeps a moving average, and the cache that it learned from."""
    root = tmp_path_factory.mktemp("finished")
    shutil.copytree(cache_folder, root / "cache")
    config = DistillConfig(
        cache=str(root / "cache"), shards=shards.pattern, out=str(root / "run"), student="test_vit", img_size=32,
        patch_size=16, steps=3, batch_size=8, lr=1e-2, ema=0.5, tracker="none", threads=1,
    )  # fmt: skip
    distill.run(config)
    return config


@pytest.mark.parametrize(("name", "size", "patch"), FAMILIES)
def test_timm_loads_the_folder_and_gives_the_students_values(name, size, patch, tmp_path):
    file = file_of(tmp_path / "run", name, size, patch)
    exported(file, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", CONFIG, MODEL]
    check_timm_loads(tmp_path / "out", file)


def test_a_runs_own_folder_loads_in_timm_and_stays_a_run(finished, tmp_path):
    run = Path(finished.out)
    check_timm_loads(run, run)
    assert run_settings(run) == finished
    assert (run / MODEL).is_symlink()
    raw, averaged = (
        {key.removeprefix(f"{kind}.encoder."): value for key, value in load_file(run / CHECKPOINT).items()
         if key.startswith(f"{kind}.encoder.")}
        for kind in ("model", "ema")
    )  # fmt: skip
    exported(run, tmp_path / "out")
    found = load_file(tmp_path / "out" / MODEL)
    assert found.keys() == averaged.keys()
    assert all(torch.equal(found[key], averaged[key]) for key in found)
    assert any(not torch.equal(raw[key], averaged[key]) for key in found)


def test_a_copied_run_that_goes_on_does_not_keep_an_old_model(training, tmp_path, monkeypatch):
    config = training(steps=4)
    StopAfter(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        distill.run(config)
    monkeypatch.undo()
    shutil.copytree(config.out, tmp_path / "copy")
    assert not (tmp_path / "copy" / MODEL).is_symlink()
    settings = json.loads((tmp_path / "copy" / CONFIG).read_text())
    del settings["pretrained_cfg"], settings["architecture"]  # as in a run of an earlier release
    (tmp_path / "copy" / CONFIG).write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"has done 2 of 4 steps; finish it with `unic-cache distill --resume`"):
        exported(tmp_path / "copy", tmp_path / "out")
    half = exported(tmp_path / "copy", tmp_path / "half", allow_unfinished=True)
    assert "**Its training was not finished: 2 of 4 steps.**" in (half.out / "README.md").read_text()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.training.run_state.save_encoder", killed)
    with pytest.raises(KeyboardInterrupt):  # between checkpoint and encoder
        distill.run(training(steps=4, out=str(tmp_path / "copy"), resume=True))
    monkeypatch.undo()
    assert (tmp_path / "copy" / MODEL).is_symlink()
    distill.run(training(steps=4, out=str(tmp_path / "copy"), resume=True))
    check_timm_loads(tmp_path / "copy", tmp_path / "copy")
    exported(tmp_path / "copy", tmp_path / "out")
    assert "was not finished" not in (tmp_path / "out/README.md").read_text()


def test_equal_runs_give_equal_bytes_and_our_commands_read_them(tmp_path):
    file = file_of(tmp_path / "run", "test_vit", 32, 8)
    for form in ("timm", "hf"):
        one, other = (exported(file, tmp_path / folder / form, form).out for folder in ("a", "b"))
        assert tree(one) == tree(other)
    found = provenance.run(InspectConfig(str(one)))
    assert found["inherits"] == {"Apache-2.0": ["dino"], "MIT": ["clip"]}
    assert found["config"]["weights"] == [["dino", "dino.pth"]]  # without the folder on that machine
    header = (one / MODEL).read_bytes()[8:3000]
    assert header.index(b'"format":"pt"') < header.index(b'"unic_cache"')


def test_a_file_of_an_earlier_release_is_exported(tmp_path):
    file = file_of(tmp_path / "run", "test_vit", 32, 8)
    encoder, spec, _ = load_encoder(file)
    metadata = {"format": 1, "spec": spec.to_json(), "provenance": {}}
    save_file(encoder.state_dict(), file, {"unic_cache": json.dumps(metadata)})
    assert exported(file, tmp_path / "out").licences == {}
    check_timm_loads(tmp_path / "out", file)
    assert "license: other" in (tmp_path / "out/README.md").read_text()


@slow
@pytest.mark.parametrize(("name", "size", "patch"), [("test_vit", 32, 8), ("vit_small_patch16_dinov3", 64, 16)])
def test_transformers_loads_the_folder_by_the_cards_lines(name, size, patch, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    file = file_of(tmp_path / "run", name, size, patch)
    exported(file, tmp_path / "out", "hf")
    check_timm_loads(tmp_path / "out", file)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"image": picture(3, (size, size))}
    for code in snippets(tmp_path / "out"):
        exec(code, scope)
    assert scope["last"].shape[0] == 1
    encoder, _, _ = load_encoder(file)
    pixels = scope["processor"](scope["image"], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        torch.testing.assert_close(scope["found"].pooler_output, embed(encoder, pixels), atol=1e-6, rtol=0)


def snippets(folder: Path) -> list[str]:
    """The Python of a model card."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def test_the_card_names_teachers_licences_recipe_results_and_runs(tmp_path, monkeypatch):
    file = file_of(
        tmp_path / "run", "test_vit", 32, 8,
        config={**PROVENANCE["config"], "init": "/home/someone/start.pth", "loss": "unic"},
    )  # fmt: skip
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    kinds = {"student": "student", "dino": "teacher", "timm:x": "network"}
    task = {
        "metric": "20-NN", "unit": "%", "higher_is_better": True, "images": 9, "classes": 3,
        "encoders": {name: {"kind": kind, **score} for name, kind in kinds.items()},
    }  # fmt: skip
    results = tmp_path / "results.json"
    unsure = [f"/home/someone/run: no run is beside it, so {UNKNOWN}", "dino is read from the cache"]
    results.write_text(json.dumps({"images": 9, "trained_on": 7, "tasks": {"knn": task}, "remarks": unsure}))
    exported(file, tmp_path / "out", results=str(results))
    card = (tmp_path / "out/README.md").read_text()
    for line in (
        "license: other\n",
        "| dino | Apache-2.0 | https://example.org/dino | abababababababab |",
        "| clip | MIT | https://example.org/clip | cdcdcdcdcdcdcdcd |",
        "began with the weights start.pth, whose licence binds it too",
        "- 4 steps\n",
        "- 10 images, 2 views each: recipe unic, 32 px",
        "- loss unic",
        "Of the test images, up to 7 were seen in training, without labels.\n",
        "Of some encoder it is unknown whether it was trained on test images.\n",
        "| encoder | knn (20-NN, %) |",
        "| this student | 50.0 (40.0..60.0) |\n| dino | 50.0 (40.0..60.0) |",
    ):
        assert line in card
    assert "someone" not in card
    assert "timm:x" not in card
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"image": picture(3)}
    (code,) = snippets(tmp_path / "out")
    exec(code, scope)
    assert scope["feature"].shape == (1, 64)
    task["encoders"]["other"] = task["encoders"]["student"]
    results.write_text(json.dumps({"images": 9, "tasks": {"knn": task}}))
    with pytest.raises(ConfigError, match="it has the students student, other, and none is called run; evaluate this"):
        exported(file, tmp_path / "more", results=str(results))
    assert not (tmp_path / "more").exists()


def test_results_of_another_student_are_not_this_ones(tmp_path):
    file, other = file_of(tmp_path / "run", "test_vit", 32, 8), file_of(tmp_path / "other", "test_vit", 32, 16)
    one = {"kind": "student", "value": 0.5, "low": 0.4, "high": 0.6}
    task = {"metric": "20-NN", "unit": "%", "higher_is_better": True, "images": 9, "encoders": {"student": one}}
    results = tmp_path / "results.json"
    weights = {"student": state_sha256(load_encoder(other)[0].state_dict())}  # as `evaluate` writes them
    results.write_text(json.dumps({"images": 9, "tasks": {"knn": task}, "weights": weights}))
    with pytest.raises(ConfigError, match=r"has the students student, and none has the weights of .*; run `unic-cache"):
        exported(file, tmp_path / "out", results=str(results))
    assert (
        "| this student | 50.0 (" in (exported(other, tmp_path / "out", results=str(results)).out / README).read_text()
    )


def test_the_card_counts_teachers_alone_and_says_what_took_effect(tmp_path):
    """Weights that the student began with are no teacher; a setting without effect is none."""
    file = file_of(
        tmp_path / "run", "test_vit", 32, 8,
        teachers={"a": {"licence": "MIT"}, "b": {"licence": "mit"}},
        init={"name": "dino", "licence": "MIT", "published": "https://example.org"},
        config={"init": "dino", "batch_size": 512, "lr": None, "balancing": "none", "drop_teacher": 0.5},
    )  # fmt: skip
    card = ModelCard.load(exported(file, tmp_path / "out").out / README)
    assert (card.data.license, card.data.library_name) == ("mit", "timm")
    assert "distilled by unic-cache from 2 teachers." in card.text
    assert "| dino |" not in card.text
    assert "Its encoder began with the weights dino, whose licence, MIT, binds it too." in card.text
    assert "- peak learning rate 0.0006" in card.text
    assert "dropped" not in card.text
    other = file_of(tmp_path / "other", "test_vit", 32, 8, teachers={"a": {"licence": None}}, init=None)
    card = ModelCard.load(exported(other, tmp_path / "more", "hf").out / README)
    assert (card.data.license, card.data.library_name) == ("other", "transformers")
    assert "| a | unknown |" in card.text


def test_the_licences_of_the_first_weights_go_on(tmp_path):
    """Of another student, whose teachers bind this one too, and of timm's; a file that says nothing has none."""
    file = file_of(tmp_path / "run", "test_vit", 32, 8)
    known = {"name": str(file), "licence": "Apache-2.0; MIT"}
    assert init_origin(str(file)) == known
    assert init_origin("timm:vit_tiny_patch16_224")["licence"] == "apache-2.0"
    assert set(init_origin("dino")) == {"name", "published", "licence"}
    save_file(load_encoder(file)[0].state_dict(), tmp_path / "plain.safetensors")
    assert init_origin(str(tmp_path / "plain.safetensors")) == {}
    other = file_of(tmp_path / "other", "test_vit", 32, 8, init=known, config={"init": str(file)})
    card = (exported(other, tmp_path / "out").out / README).read_text()
    assert "began with the weights encoder.safetensors, whose licence, Apache-2.0; MIT, binds it too." in card


def test_no_folder_of_this_machine_is_named(tmp_path):
    """Paths in settings, and those of `local-dir:` teachers and first weights wherever they stand."""
    one, two = "local-dir:/home/someone/models/vit", "local-dir:/data/vit@336+cls=none"
    said = {"about": "timm's vit of /home/someone/models/vit", "licence": "not stated; see /home/someone/models/vit"}
    first = {"teachers": {two: {"published": "/data/vit"}}, "config": {"val_shards": "s3://secret/val/{0..3}.tar"}}
    made = {
        "teachers": {one: said, "hf-hub:org/model": {"published": "https://hub/org/model"}},
        "init": {"name": one, "published": "/home/someone/models/vit"},
        "config": {
            "teachers": [one], "init": one, "weights": [["hf-hub:org/model", "/home/someone/x.pth"]],
            "from_run": "/home/someone/runs/first/", "student": "vit",
        },
        "from": first,
    }  # fmt: skip
    found = placeless(made)
    assert not {"someone", "secret", "/data"} & set(re.findall(r"someone|secret|/data", json.dumps(found)))
    assert found["teachers"].keys() == {"local-dir:vit-2", "hf-hub:org/model"}
    assert found["teachers"]["local-dir:vit-2"]["about"] == "timm's vit of vit-2"
    assert found["from"]["teachers"] == {"local-dir:vit@336+cls=none": {"published": "vit"}}
    assert found["config"] == {
        "teachers": ["local-dir:vit-2"], "init": "local-dir:vit-2", "weights": [["hf-hub:org/model", "x.pth"]],
        "from_run": "first", "student": "vit",
    }  # fmt: skip
    assert placeless({"config": {"init": "hf-hub:org/model"}})["config"] == {"init": "hf-hub:org/model"}
    assert placeless({"config": {"init": "/home/someone/start.pth"}})["config"] == {"init": "start.pth"}
    assert placeless({"init": {"name": "/home/someone/start.pth"}})["init"] == {"name": "start.pth"}
    file = file_of(tmp_path / "run", "test_vit", 32, 8, **made)
    for form in ("timm", "hf"):
        assert b"someone" not in b"".join(tree(exported(file, tmp_path / form, form).out).values())


def test_a_run_on_a_disk_without_links_keeps_no_old_model_and_a_full_disk_is_an_error(tmp_path, monkeypatch):
    encoder, spec, _ = load_encoder(file_of(tmp_path, "test_vit", 32, 8))
    (tmp_path / CONFIG).write_text('{"stage": "distill"}')
    (tmp_path / MODEL).write_bytes(b"of a copied run")

    def fails(number):
        def symlink_to(path, target):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(Path, "symlink_to", symlink_to)

    fails(errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        lay_out_run(tmp_path, encoder, spec, ())
    fails(errno.EPERM)
    assert lay_out_run(tmp_path, encoder, spec, ()) == "its file system has no links (Operation not permitted)"
    assert not (tmp_path / MODEL).exists()


def test_a_run_overwrites_no_model_that_is_not_its_own(training, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / MODEL).write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"holds model\.safetensors but no checkpoint: a new run would overwrite it"):
        distill.run(training())


def test_one_licence_of_all_is_the_cards(tmp_path):
    teachers = {name: {"licence": "CC-BY-NC-4.0"} for name in ("a", "b")}
    exported(file_of(tmp_path / "run", "test_vit", 32, 8, teachers=teachers), tmp_path / "out")
    assert (tmp_path / "out/README.md").read_text().startswith("---\nlicense: cc-by-nc-4.0\nlibrary_name: timm\n")
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["pretrained_cfg"]["license"] == "CC-BY-NC-4.0"


def test_other_things_are_never_touched_and_half_an_export_is_none(tmp_path, monkeypatch):
    file = file_of(tmp_path / "run", "test_vit", 32, 8)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"out holds mine\.txt; choose a new folder, or delete this one first"):
        exported(file, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"encoder\.safetensors is a file; choose a folder"):
        exported(file, file)
    before = tree(tmp_path)
    written: list[str] = []

    def full(folder, name, data):
        written.append(name)
        if name == MODEL:
            raise OSError(28, "No space left on device")
        folder.path.mkdir(exist_ok=True)
        (folder.path / name).write_bytes(data)

    monkeypatch.setattr("unic_cache.files.local.LocalFolder.replace", full)
    with pytest.raises(OSError, match="No space left"):
        exported(file, tmp_path / "new")
    assert written == ["README.md", CONFIG, MODEL]
    assert tree(tmp_path) == before
    monkeypatch.undo()
    (tmp_path / "new").mkdir()
    exported(file, tmp_path / "new")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp")]


def test_what_timm_would_not_load_as_the_student_is_not_written(tmp_path, monkeypatch):
    file = file_of(tmp_path / "run", "test_vit", 32, 8)
    honest = export.timm_config
    for changes, said in (
        (
            {"architecture": "test_vit2"},
            r"timm .* cannot load what would be exported \(RuntimeError: .*nothing was written",
        ),
        ({"act_layer": "relu"}, "makes another network of what would be exported: its features differ"),
    ):

        def changed(*arguments, changes=changes):
            made = honest(*arguments)
            options = {key: value for key, value in changes.items() if key != "architecture"}
            return {**made, **changes, "model_args": {**made["model_args"], **options}}

        monkeypatch.setattr(export, "timm_config", changed)
        with pytest.raises(UnicCacheError, match=said):
            exported(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


class Hub:
    """Stands in for huggingface_hub.HfApi."""

    calls: ClassVar[list[tuple[str, Any]]] = []
    fails: str | None = None
    role, public = "write", False

    def _called(self, name: str, *what: Any) -> str:
        if self.fails == name:
            raise PermissionError("401 Client Error\nnot your repository")
        self.calls.append((name, what))
        return "https://hub.example/me/student"

    def whoami(self) -> dict[str, Any]:
        self._called("whoami")
        return {"name": "me", "auth": {"type": "access_token", "accessToken": {"role": self.role}}}

    def model_info(self, repo: str) -> SimpleNamespace:
        return SimpleNamespace(private=not self.public)

    def create_repo(self, repo: str, private: bool | None, exist_ok: bool) -> str:
        return self._called("create_repo", repo, private, exist_ok)

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> str:
        return self._called("upload_folder", repo_id, sorted(path.name for path in folder_path.iterdir()))


@pytest.fixture
def api(monkeypatch) -> type[Hub]:
    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(Hub, "calls", [])
    return Hub


def test_push_uploads_the_whole_folder_and_nothing_is_sent_without_it(tmp_path, api):
    file = file_of(tmp_path / "run", "test_vit", 32, 8)
    exported(file, tmp_path / "out")
    assert api.calls == []
    done = exported(file, tmp_path / "sent", push="me/student", private=True)
    names = ["README.md", CONFIG, MODEL]
    assert api.calls == [
        ("whoami", ()),
        ("create_repo", ("me/student", True, True)),
        ("upload_folder", ("me/student", names)),
    ]
    assert done.address == "https://hub.example/me/student"
    assert "timm.create_model('hf-hub:me/student', pretrained=True)" in (tmp_path / "sent/README.md").read_text()


def test_what_the_hub_refuses_is_told_in_one_line(tmp_path, api, monkeypatch):
    file = file_of(tmp_path / "run", "test_vit", 32, 8)
    monkeypatch.setattr(api, "fails", "whoami")
    with pytest.raises(
        ConfigError, match=r"the hub knows no user \(.*401.*\); log in with `hf auth login`, or set HF_T"
    ):
        exported(file, tmp_path / "out", push="me/student")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(api, "fails", "upload_folder")
    with pytest.raises(
        UnicCacheError, match=r"401 Client Error not your .*out is whole; .*: hf upload me/student .*out"
    ):
        exported(file, tmp_path / "out", push="me/student")
    check_timm_loads(tmp_path / "out", file)
    monkeypatch.setattr(api, "fails", None)
    monkeypatch.setattr(api, "public", True)
    with pytest.raises(UnicCacheError, match=r"me/student is public; make it private on the hub, or leave out --priv"):
        exported(file, tmp_path / "kept", push="me/student", private=True)
    assert "upload_folder" not in [name for name, _ in api.calls]
    monkeypatch.setattr(api, "role", "read")
    with pytest.raises(ConfigError, match=r"the token of me only reads; log in with `hf auth login`"):
        exported(file, tmp_path / "more", push="me/student")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        exported(file, tmp_path / "more", push="me/student")


def test_settings_that_do_not_go_together_are_refused(tmp_path):
    for changes, said in (
        ({"push": "student"}, "--push student: the hub's models are called ORG/NAME"),
        ({"private": True}, "--private is of a model that --push makes"),
        ({"cache": "cache"}, "--cache is for --format heads"),
        ({"format": "jax"}, "format 'jax'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            ExportConfig("run", "out", **changes)
    for places in (("run", "hf-hub:me/student"), ("local-dir:run", "out")):
        with pytest.raises(ConfigError, match="RUN and OUT are plain paths; --push ORG/NAME publishes on the hub"):
            ExportConfig(*places)


@pytest.mark.parametrize(("name", "size", "patch"), CONVERTED)
def test_onnxruntime_gives_torchs_values_for_any_batch(name, size, patch, tmp_path, capsys, monkeypatch):
    file = file_of(tmp_path / "run", name, size, patch)
    one = exported(file, tmp_path / "a/out", "onnx").out
    assert "not compared" not in capsys.readouterr().err + (one / "README.md").read_text()
    data = (one / "model.onnx").read_bytes()
    assert str(Path.cwd()).encode() not in data
    assert b"site-packages" not in data
    encoder, _, _ = load_encoder(file)
    run = onnx_file.onnxruntime_session(data)
    with torch.inference_mode():
        wanted = tokens(encoder, images_of(size))
    (_, width), (_, count, channels) = (tuple(value.shape) for value in wanted)
    assert f"is (B, {width}), and the patch tokens (B, {count}, {channels}), on a" in (one / README).read_text()
    for own, found in zip(wanted, run(np.asarray(images_of(size))), strict=True):
        np.testing.assert_allclose(found, own, rtol=1e-4, atol=1e-4)
    with pytest.raises(UnicCacheError, match=r"patch of 1 images differs from torch by .*nothing was written"):
        onnx_file.check_equal(onnx_file.Outputs(encoder), size, lambda images: [run(images)[0], run(images)[1] + 1e-2])
    if name == "test_efficientnet":
        monkeypatch.setattr(onnx_file, "find_spec", lambda package: None)  # without onnxruntime
        assert tree(one)["model.onnx"] == tree(exported(file, tmp_path / "b/out", "onnx").out)["model.onnx"]
        assert "not compared with torch: onnxruntime is missing; install" in capsys.readouterr().err
        assert "It was not compared with torch" in (tmp_path / "b/out/README.md").read_text()


def test_on_the_command_line(finished, tmp_path, monkeypatch):
    def invoke(*words: str) -> Any:
        return CliRunner().invoke(cli.main, ["export", *words])

    monkeypatch.chdir(tmp_path)
    done = invoke(finished.out, "out")
    assert done.exit_code == 0, done.output
    assert "The export is out. Load it with\n  timm.create_model('local-dir:out', pretrained=True)" in done.output
    assert f"It inherits the terms of {VIT} (" in done.output.replace(CNN, VIT)
    again = invoke(finished.out, "out")
    assert (again.exit_code, "out holds README.md" in again.output) == (2, True)
    for words, said in (
        (("none", "new"), "none: there is no such file or folder"),
        (("out", "new", "--format", "heads"), "config.json is not of a run of `unic-cache distill`"),
        ((finished.out, "new", "--results", "none.json"), "--results none.json: there is no such file"),
    ):
        found = invoke(*words)
        assert (found.exit_code, said in found.output) == (2, True), found.output
    make_shards(tmp_path / "tars", (1,))
    assert invoke("tars", "new").exit_code == 2
