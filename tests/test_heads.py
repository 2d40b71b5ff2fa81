"""`export --format heads` and `load_heads`: each teacher's features from the student, in the teacher's own scale."""

import dataclasses
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn

import unic_cache
from pipelines import distill, export, extract
from pipelines.exporting.places import places_in
from pipelines.exporting.teacher_scale import check_learned, facts_of
from pipelines.training.finished_run import load_student
from pipelines.training.training_set import Snapshot
from tests import tiny_models
from tests.conftest import CNN, VIT, make_shards, picture, tree, views_of
from tests.test_export import check_timm_loads
from unic_cache.cache import open_cache
from unic_cache.config import DistillConfig, ExportConfig, ExtractConfig
from unic_cache.errors import CacheError, ConfigError
from unic_cache.store.standardize import affine, own_scale
from unic_cache.student.backbone import prepare
from unic_cache.student.export import load_encoder, save_encoder
from unic_cache.student.heads import HEADS, Heads
from unic_cache.student.ladder import Ladder
from unic_cache.student.run_files import CHECKPOINT, ENCODER, MODEL
from unic_cache.student.transformer import TransformerProjector
from unic_cache.token_kinds import TokenKind

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def cache_of_runs(tmp_path_factory, cache_folder) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "cache"
    shutil.copytree(cache_folder, folder)
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory, cache_of_runs, shards):
    """A finished run of two steps, made once for equal settings."""
    made: dict[Any, DistillConfig] = {}

    def run(**changes: Any) -> DistillConfig:
        key = tuple(sorted(changes.items()))
        if key not in made:
            made[key] = DistillConfig(
                **{
                    "cache": str(cache_of_runs), "shards": shards.pattern, "student": "test_vit", "img_size": 32,
                    "out": str(tmp_path_factory.mktemp("runs") / "run"), "patch_size": 16, "steps": 2, "batch_size": 8,
                    "lr": 1e-2, "tracker": "none", "threads": 1, **changes,
                }
            )  # fmt: skip
            distill.run(made[key])
        return made[key]

    return run


def heads_of(config: DistillConfig, out: Path, **changes: Any) -> Heads:
    export.run(ExportConfig(config.out, str(out), "heads", **changes))
    return unic_cache.load_heads(out)


def views(count: int = 3, size: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(picture(n, (size, size))) for n in range(count)]))


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.5},
        pytest.param({"standardize": "phi-s", "projector": "transformer"}, marks=slow),
        pytest.param({"standardize": "none", "projector": "last", "ladder_widths": (8, 24)}, marks=slow),
        pytest.param({"shared_projectors": True, "kinds": ("cls", "patch")}, marks=slow),
        pytest.param({"kinds": ("patch",), "tokens": 2}, marks=slow),
    ],
    ids=lambda changes: "-".join(map(str, changes)),
)
def test_they_give_the_runs_guesses_in_the_teachers_own_scale(ran, changes, tmp_path):
    """Against the run's student and, one channel's statistics at a time, the definition of its standardization."""
    config = ran(**changes)
    heads = heads_of(config, tmp_path / "out")
    cache = open_cache(config.cache)
    teachers = [cache.teacher(name) for name in (VIT, CNN)]
    teachers = [teacher.only(config.kinds) if config.kinds else teacher for teacher in teachers]
    student, spec, _ = load_student(Path(config.out), config, teachers)
    with torch.inference_mode():
        found, guesses = heads(heads.prepare(views())), student(prepare(views(), spec))
    assert {name: list(kinds) for name, kinds in found.items()} == {one.name: list(one.kinds) for one in teachers}
    for teacher in teachers:
        for kind in teacher.kinds:
            guess = guesses[teacher.name][kind].double()
            if config.standardize == "phi-s":
                matrix, offset = (part.double() for part in affine(teacher.calibration, kind, "phi-s"))
                guess = torch.linalg.solve(matrix.T, (guess - offset).flatten(0, -2).T).T.reshape(guess.shape)
            own = guess
            if config.standardize != "none":
                own = teacher.calibration.destandardize({kind: guess})[kind]
            torch.testing.assert_close(found[teacher.name][kind].double(), own, rtol=1e-4, atol=1e-4)
    check_timm_loads(tmp_path / "out", Path(config.out))


def test_every_standardization_is_undone(cache_folder):
    """From what is stored to each standardization, and from there to the teacher's own values."""
    cache = open_cache(cache_folder)
    teacher = cache.teachers[VIT]
    stored = teacher.features(teacher.record(cache.unit(0, 0, "unic-32-0-000")), range(8))
    own = teacher.calibration.destandardize(stored)
    for name in ("channel", "phi-s", "none"):
        for kind, values in stored.items():
            found = affine(teacher.calibration, kind, name)
            given = values if found is None else values @ found[0] + found[1]
            scale, offset = own_scale(teacher.calibration, kind, name)
            assert scale.ndim == (2 if name == "phi-s" else 1)
            back = (given @ scale if scale.ndim == 2 else given * scale) + offset
            torch.testing.assert_close(back, own[kind], rtol=1e-4, atol=1e-4)


def test_equal_runs_give_equal_bytes_and_an_ordinary_module(ran, tmp_path):
    config = ran(ema=0.5)
    heads = heads_of(config, tmp_path / "a/out")
    heads_of(config, tmp_path / "b/out")
    assert tree(tmp_path / "a/out") == tree(tmp_path / "b/out")
    assert not heads.training
    images = torch.randn(2, 3, 32, 32)
    loss = heads(images)[VIT]["cls"].square().mean()
    loss.backward()
    assert all(value.grad is not None for value in heads.projectors.heads[f"{VIT}:cls"].parameters())
    transform = timm.data.create_transform(**heads.data_config)
    assert heads(transform(picture(1)).unsqueeze(0))[VIT]["patch"].shape == (1, 4, 64)
    assert (
        heads.teachers[VIT]["weights_sha256"]
        == open_cache(config.cache).teachers[VIT].spec["teacher"]["weights_sha256"]
    )
    assert set(heads.teachers[VIT]) >= {"licence", "arch", "cls_rule", "patch_rule", "grid"}


def test_the_cache_must_be_the_runs_own(ran, tmp_path):
    config = ran(ema=0.5)
    shutil.copytree(config.out, tmp_path / "run")
    moved = dataclasses.replace(config, out=str(tmp_path / "run"))
    settings_file = tmp_path / "run/config.json"
    settings_file.write_text(settings_file.read_text().replace(config.cache, str(tmp_path / "gone")))
    with pytest.raises(CacheError, match=r"gone: no cache is here .* elsewhere now, name it with --cache"):
        heads_of(moved, tmp_path / "out")
    assert heads_of(moved, tmp_path / "out", cache=config.cache).spec.img_size == 32
    cache, snapshot = open_cache(config.cache), Snapshot.load(Path(config.out))
    teachers, (_, _, made) = [cache.teacher(name) for name in (VIT, CNN)], load_encoder(config.out)
    shown = (snapshot.views, snapshot.numbers, snapshot.train)
    check_learned(cache, teachers, made, shown, snapshot.records)
    with pytest.raises(CacheError, match=r"is not the cache that the run learned .* from; name it with --cache"):
        check_learned(cache, teachers, made, shown, dict.fromkeys(snapshot.records, 1))
    made["teachers"][CNN]["weights_sha256"] = "00"
    with pytest.raises(CacheError, match=r"has other weights than the run's teacher; name its cache: --cache"):
        check_learned(cache, teachers, made, None, {})


def test_a_run_online_has_its_own_statistics(tmp_path):
    settings = DistillConfig(online=True, teachers=(VIT,))
    with pytest.raises(ConfigError, match=r"were --online, .* by its own statistics, in run.online; leave out --cache"):
        export.learned_cache(ExportConfig("run", "out", "heads", cache=str(tmp_path)), Path("run"), settings)


def test_the_facts_of_a_teacher_name_every_rule():
    rules = {
        "cls_rule": "none",
        "patch_rule": "norm-patch",
        "summary_rules": {"cls-1": "prefix:0", "cls-2": "prefix:4"},
    }
    spec = {"arch": "radio", "weights_sha256": "00", "version": "1", "name": "c-radio", **rules}
    found = facts_of(SimpleNamespace(spec={"teacher": spec, "provenance": {"licence": "x"}}))
    assert found.items() >= {**rules, "version": "1", "licence": "x", "weights_sha256": "00"}.items()


def test_a_folders_place_is_not_in_its_projectors_names():
    kinds, place = {"cls": TokenKind(3), "patch": TokenKind(3, (2, 2))}, "local-dir:/home/a.b/vit"
    for make in (
        lambda name: Ladder([(8, 8)], {name: kinds, VIT: kinds}, 0, None, True),
        lambda name: TransformerProjector([(8, 8)], {name: kinds, VIT: kinds}, 0),
    ):
        own = make(place).state_dict()
        found = places_in(place).projectors(own, [place, VIT])
        assert [*found.values()] == [*own.values()]
        make("local-dir:vit").load_state_dict(found)  # strictly


def test_halves_of_two_exports_and_files_that_are_none_are_refused(ran, tmp_path):
    config = ran(ema=0.5)
    heads_of(config, tmp_path / "out")
    with pytest.raises(
        ConfigError, match=r"the projectors are in a run's checkpoint, so --format heads needs its fold"
    ):
        export.run(ExportConfig(str(Path(config.out) / ENCODER), str(tmp_path / "more"), "heads"))
    path, model = tmp_path / "out" / HEADS, tmp_path / "out" / MODEL
    whole, own = path.read_bytes(), model.read_bytes()
    model.write_bytes(own[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(ConfigError, match=r"is not of the encoder in .*: two exports were mixed"):
        unic_cache.load_heads(tmp_path / "out")
    model.write_bytes(own)
    for data, said in (
        (whole[:-9], "not a whole safetensors file"),
        (own, "a safetensors file, but not of `unic-cache export --format heads`"),
        (whole.replace(b'\\"format\\": 1', b'\\"format\\": 2'), "format 2, and this release reads format 1"),
        (
            whole.replace(b'\\"name\\": \\"ladder\\"', b'\\"name\\": \\"ladles\\"'),
            "called 'ladles', which this release",
        ),
        (whole.replace(b"scale.", b"scole."), "damaged or edited"),
    ):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=re.escape(said)):
            unic_cache.load_heads(tmp_path / "out")
    path.unlink()
    with pytest.raises(ConfigError, match="unic-cache export RUN OUT --format heads` makes it"):
        unic_cache.load_heads(tmp_path / "out")
    shutil.copytree(config.out, tmp_path / "run")
    encoder, spec, made = load_encoder(config.out)
    save_encoder(tmp_path / "run" / ENCODER, encoder, spec, {**made, "steps": 1})
    with pytest.raises(
        ConfigError, match=r"the checkpoint is of step 2 and encoder\.safetensors of step 1; the run is"
    ):
        export.run(ExportConfig(str(tmp_path / "run"), str(tmp_path / "more"), "heads", allow_unfinished=True))
    (tmp_path / "run" / CHECKPOINT).unlink()
    with pytest.raises(ConfigError, match=r"has no checkpoint\.safetensors, which holds the projectors"):
        export.run(ExportConfig(str(tmp_path / "run"), str(tmp_path / "more"), "heads", allow_unfinished=True))


@slow
def test_zero_shot_with_a_clip_teachers_text_encoder(tmp_path, monkeypatch):
    """The lines of docs/EXPORT.md on a tiny CLIP of OpenCLIP; given the teacher's own CLS, they answer as CLIP does."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(5)
    clip = open_clip.model.CLIP(
        embed_dim=24,
        vision_cfg={"layers": 2, "width": 32, "head_width": 16, "patch_size": 14, "image_size": 224},
        text_cfg={"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
        quick_gelu=True,
    ).eval()  # fmt: skip
    weights, tower = tmp_path / "clip.safetensors", timm.create_model("tiny_metaclip_h").state_dict()
    converted = checkpoint_filter_fn(clip.state_dict(), timm.create_model("tiny_metaclip_h"))
    save_file({name: converted[name].contiguous() for name in tower}, weights)
    tars, name = make_shards(tmp_path / "tars", (12,)), "timm:tiny_metaclip_h"
    extract.run(
        ExtractConfig(
            (name,), weights=((name, str(weights)),), shards=tars.pattern, cache=str(tmp_path / "cache"), size=224,
            views=1, codec="f16", calibration_images=10, batch_size=4, device="cpu", threads=1,
        )
    )  # fmt: skip
    config = DistillConfig(
        cache=str(tmp_path / "cache"), shards=tars.pattern, out=str(tmp_path / "run"), student="test_vit", img_size=32,
        patch_size=16, steps=2, batch_size=4, tracker="none", threads=1,
    )  # fmt: skip
    distill.run(config)
    heads = heads_of(config, tmp_path / "heads")
    code = re.findall(r"```python\n(.*?)```", (Path("docs/EXPORT.md")).read_text(), re.DOTALL)[-1]
    code = code.replace("clip-b16-openai", name)
    texts = torch.randint(1, 60, (3, 8))
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: clip)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda _: lambda _: texts)
    monkeypatch.chdir(tmp_path)
    seen = views(3, 224)
    scope: dict[str, Any] = {"images": heads.prepare(seen)}
    exec(code, scope)
    assert scope["best_B"].shape == (3,)

    # The teacher's own features of its views, by the same lines: what CLIP itself says of these images
    cache = open_cache(tmp_path / "cache")
    teacher = cache.teachers[name]
    own = teacher.calibration.destandardize(
        teacher.features(teacher.record(cache.unit(0, 0, "unic-224-0-000")), range(3))
    )
    shown = torch.from_numpy(views_of(tars, 0, 0, 224)[:3])
    clip_images = (
        shown.permute(0, 3, 1, 2) / 255 - torch.tensor(tiny_models.CLIP["mean"]).view(3, 1, 1)
    ) / torch.tensor(tiny_models.CLIP["std"]).view(3, 1, 1)
    scope |= {"images": None}
    monkeypatch.setattr(unic_cache, "load_heads", lambda _: lambda _: {name: own})
    exec(code, scope)
    with torch.inference_mode():
        image, text, _ = clip(clip_images, texts)
    torch.testing.assert_close(scope["image_BD"], image, rtol=1e-2, atol=2e-3)
    torch.testing.assert_close(scope["text_ND"], text)
    assert torch.equal(scope["best_B"], (image @ text.T).argmax(dim=1))
