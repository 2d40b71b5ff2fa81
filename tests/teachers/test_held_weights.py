"""Files that people hold: in their authors' layouts and in Hugging Face's they are the same weights as in timm's."""

import argparse
import dataclasses

import numpy as np
import pytest
import timm
import torch

from benchmarks.teachers import small
from unic_cache.errors import ConfigError, TeacherError
from unic_cache.student.backbone import EncoderSpec, build_encoder
from unic_cache.teachers.catalog import CATALOG, resolve
from unic_cache.teachers.model import load_teacher
from unic_cache.weights.layouts import translated
from unic_cache.weights.state_dicts import find

PLAIN = "timm:test_vit"


def random_state(spec):
    """Random weights under timm's names, norms and biases too."""
    torch.manual_seed(0)
    options = dict(spec.arch_options)
    state = timm.create_model(spec.arch, num_classes=0, **options).state_dict()
    return {name: value + 0.1 * torch.randn_like(value) for name, value in state.items()}


def saved(tmp_path, content, name="w.pth") -> str:
    torch.save(content, tmp_path / name)
    return str(tmp_path / name)


def same(spec, tmp_path, content, state):
    """Load both, and assert that they are the same weights."""
    theirs = load_teacher(spec, saved(tmp_path, content, "theirs.pth"))
    assert theirs.spec.weights_sha256 == load_teacher(spec, saved(tmp_path, state, "ours.pth")).spec.weights_sha256
    return theirs


def chunked(name: str) -> str:
    """A name in DINOv2's trainer with one chunk of blocks."""
    return name.replace("blocks.", "blocks.0.") if name.startswith("blocks.") else name


def unic_file(state):
    """What UNIC's trainer saves."""
    schedules = argparse.Namespace(arch="vit_base", lr_schedule=np.linspace(0, 1, 7), tnorm_ema_schedule=np.zeros(3))
    encoder = {f"module.encoder.{chunked(name)}": value for name, value in state.items()}
    beside = {"module.encoder.mask_token": torch.zeros(1, 64), "module.lp.dino.cls.0.weight": torch.ones(4, 4)}
    return {
        "model": encoder | beside,
        "optimizer": {"state": {}},
        "epoch": 99,
        "args": schedules,
        "loss": np.float64(1),
    }


def test_unics_checkpoint_is_a_teacher_and_a_students_start(tmp_path):
    state = random_state(resolve(PLAIN))
    same(resolve(PLAIN), tmp_path, unic_file(state), state)
    student = build_encoder(EncoderSpec("test_vit", 160, 16), seed=0, init=str(tmp_path / "theirs.pth")).state_dict()
    assert all(torch.equal(student[name], value) for name, value in state.items())


def test_unics_presets_are_its_architectures(tmp_path):
    assert [CATALOG[name].arch for name in ("unic", "unic-l")] == ["vit_base_patch16_224", "vit_large_patch14_224"]
    spec = small(CATALOG["unic"])
    state = random_state(spec)
    same(spec, tmp_path, unic_file(state), state)


def test_a_class_tokens_position_is_added_to_it_where_timm_has_none_for_it(tmp_path):
    spec = small(CATALOG["dinov2-s-reg"])
    state = random_state(spec)
    theirs = {chunked(name): value for name, value in state.items() if name != "reg_token"}
    place = torch.full((1, 1, 64), 0.5)
    theirs |= {"register_tokens": state["reg_token"], "mask_token": torch.zeros(1, 64)}
    theirs["pos_embed"] = torch.cat([place, state["pos_embed"]], dim=1)
    same(spec, tmp_path, theirs, {**state, "cls_token": state["cls_token"] + place})
    unchunked = {name.replace("blocks.0.", "blocks.", 1): value for name, value in theirs.items()}
    same(spec, tmp_path, unchunked, {**state, "cls_token": state["cls_token"] + place})  # by timm's converter


@pytest.mark.parametrize("layout", [str, chunked], ids=["timm", "chunked"])
def test_of_two_networks_in_a_mapping_the_teacher_is_taken_whatever_the_layout(tmp_path, caplog, layout):
    spec = resolve(PLAIN)
    state = random_state(spec)
    both = {f"student.backbone.{layout(name)}": torch.zeros_like(value) for name, value in state.items()}
    both |= {f"teacher.backbone.{layout(name)}": value for name, value in state.items()}
    same(spec, tmp_path, {"model": both}, state)
    assert "took 'model.teacher.backbone', and left 'model.student.backbone'" in caplog.text
    unnamed = {name.replace("student.", "a.").replace("teacher.", "b."): value for name, value in both.items()}
    with pytest.raises(TeacherError, match=r"it holds 2 networks that fit, under 'a\.backbone\.' and 'b\.backbone\.'"):
        load_teacher(spec, saved(tmp_path, unnamed))


def test_names_of_a_model_that_look_like_chunks_are_its_own():
    tensors = {"blocks.0.0.norm1.weight": torch.ones(4), "blocks.1.0.norm1.weight": torch.ones(4)}
    assert translated(tensors, dict.fromkeys(tensors, (4,))) is tensors


def test_i_jepas_target_encoder_is_taken_out_of_its_checkpoint(tmp_path, caplog):
    spec = small(CATALOG["ijepa-h14"])
    state = random_state(spec)
    other = {f"module.{name}": torch.zeros_like(value) for name, value in state.items()}
    content = {
        "encoder": other,
        "predictor": {"module.mask_token": torch.zeros(1, 1, 8)},
        "target_encoder": {f"module.{name}": value for name, value in state.items()},
    }
    same(spec, tmp_path, content, state)
    assert "took 'target_encoder.module', and left 'encoder.module'" in caplog.text


def test_beit_v2s_pretraining_parts_are_left_out(tmp_path):
    spec = small(CATALOG["beitv2-b"])
    state = random_state(spec)
    assert "rel_pos_bias.relative_position_bias_table" in state
    assert "norm.weight" in state
    beside = {
        "mask_token": torch.zeros(1, 1, 64),
        "lm_head.weight": torch.zeros(9, 64),
        "cls_pt_layers.0.norm1.weight": torch.zeros(64),
        "rel_pos_bias.relative_position_index": torch.zeros(17, 17, dtype=torch.int64),
    }
    same(spec, tmp_path, {"model": state | beside}, state)


def dinov3_file(state):
    """A file of DINOv3's authors, with the biases that the trainer keeps."""
    named = {name.replace("gamma_", "ls").replace("reg_token", "storage_tokens"): x for name, x in state.items()}
    named = {f"{name}.gamma" if name[-4:] in {".ls1", ".ls2"} else name: x for name, x in named.items()}
    biases = {f"blocks.{n}.attn.qkv.bias": torch.zeros(192) for n in range(2)}
    masks = {f"blocks.{n}.attn.qkv.bias_mask": torch.zeros(192) for n in range(2)}
    return {**named, **biases, **masks, "mask_token": torch.zeros(1, 64), "rope_embed.periods": torch.zeros(4)}


def test_dinov3s_biases_are_left_out_only_where_they_are_zero(tmp_path, capsys):
    spec = small(CATALOG["dinov3-s"])
    state = random_state(spec)
    content = dinov3_file(state)
    same(spec, tmp_path, content, state)
    assert not capsys.readouterr().out
    content["blocks.1.attn.qkv.bias"][3] = 0.1
    with pytest.raises(TeacherError, match=r"has a bias blocks\.1\.attn\.qkv\.bias, .* with `_qkvb`"):
        load_teacher(spec, saved(tmp_path, content))


def hugging_face(state, block, outer, query):
    """Hugging Face's names: `block` and `outer` by timm's, `query` a template of query, key and value."""
    found = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            number, part = name.split(".")[1], name.rpartition(".")[2]
            for whose, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[query.format(number, whose, whose[0], part)] = piece
        elif name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            place = next(ours for ours in block if rest.startswith(ours))
            found[f"{block[place].format(number)}{rest.removeprefix(place)}"] = value
        else:
            place = next(ours for ours in outer if name.startswith(ours))
            found[f"{outer[place]}{name.removeprefix(place)}"] = value
    return found


DINOV2 = (
    {
        **{f"norm{n}": f"encoder.layer.{{}}.norm{n}" for n in (1, 2)},
        **{f"ls{n}.gamma": f"encoder.layer.{{}}.layer_scale{n}.lambda1" for n in (1, 2)},
        "attn.proj": "encoder.layer.{}.attention.output.dense",
        "mlp": "encoder.layer.{}.mlp",
    },
    {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    },
    "encoder.layer.{0}.attention.attention.{1}.{3}",
)
SIGLIP = (
    {
        **{f"norm{n}": f"vision_model.encoder.layers.{{}}.layer_norm{n}" for n in (1, 2)},
        "attn.proj": "vision_model.encoder.layers.{}.self_attn.out_proj",
        "mlp": "vision_model.encoder.layers.{}.mlp",
    },
    {
        "pos_embed": "vision_model.embeddings.position_embedding.weight",
        "patch_embed.proj": "vision_model.embeddings.patch_embedding",
        "norm": "vision_model.post_layernorm",
        "attn_pool.latent": "vision_model.head.probe",
        "attn_pool.proj": "vision_model.head.attention.out_proj",
        "attn_pool.norm": "vision_model.head.layernorm",
        "attn_pool.mlp": "vision_model.head.mlp",
        "attn_pool": "",
    },
    "vision_model.encoder.layers.{0}.self_attn.{2}_proj.{3}",
)


def test_hugging_faces_dinov2_is_the_same_under_its_names_bare_or_in_a_classifier(tmp_path):
    spec = small(CATALOG["dinov2-s"])
    state = random_state(spec)
    theirs = hugging_face(state, *DINOV2) | {"embeddings.mask_token": torch.zeros(1, 64)}
    same(spec, tmp_path, theirs, state)
    classifier = {f"dinov2.{name}": value for name, value in theirs.items()} | {"classifier.weight": torch.ones(2, 2)}
    same(spec, tmp_path, classifier, state)
    del theirs["encoder.layer.1.attention.attention.key.weight"]
    with pytest.raises(TeacherError, match=r"blocks\.1\.attn\.qkv\.weight is \(128, 64\), expected \(192, 64\)"):
        load_teacher(spec, saved(tmp_path, theirs))


def test_hugging_faces_siglip_is_the_same_beside_its_text_encoder(tmp_path):
    spec = small(CATALOG["siglip-b"])
    state = random_state(spec)
    pool = {name: value for name, value in state.items() if name.startswith(("attn_pool.q.", "attn_pool.kv."))}
    rest = {name: value for name, value in state.items() if name not in pool}
    theirs = hugging_face(rest, *SIGLIP) | {"text_model.head.weight": torch.ones(3, 3), "logit_scale": torch.ones(1)}
    for part in ("weight", "bias"):
        joined = torch.cat([pool[f"attn_pool.q.{part}"], pool[f"attn_pool.kv.{part}"]])
        theirs[f"vision_model.head.attention.in_proj_{part}"] = joined
    position = "vision_model.embeddings.position_embedding.weight"
    same(spec, tmp_path, {**theirs, position: theirs[position][0]}, state)


def test_biases_that_a_model_has_no_place_for_are_refused(tmp_path):
    shapes = {"blocks.0.attn.qkv.weight": (6, 2), "patch_embed.proj.weight": (2, 3, 1, 1)}
    content = {f"layer.0.attention.{part}_proj.weight": torch.ones(2, 2) for part in "qkv"}
    content |= {"embeddings.patch_embeddings.weight": torch.ones(2, 3, 1, 1)}
    content["layer.0.attention.q_proj.bias"] = torch.zeros(2)
    assert find(content, shapes, tmp_path).tensors.keys() == shapes.keys()
    content["layer.0.attention.q_proj.bias"] = torch.ones(2)
    with pytest.raises(Exception, match=r"biases blocks\.0\.attn\.query\.bias, .* with `_qkvb`"):
        find(content, shapes, tmp_path)


def test_dinov2s_positions_move_by_its_authors_rule_and_by_another_if_that_is_said(tmp_path):
    own = dataclasses.replace(small(CATALOG["dinov2-s"]), input_size=42)
    spec = dataclasses.replace(own, name="dinov2-s@42", arch_options=(*own.arch_options[1:], ("img_size", 42)))
    state = random_state(dataclasses.replace(spec, arch_options=own.arch_options))  # 4 x 4 positions
    plane = state["pos_embed"][:, 1:].transpose(1, 2).reshape(1, 64, 4, 4)
    for rule, settings in (
        ("bicubic-scale", {"scale_factor": (3.1 / 4, 3.1 / 4)}),
        ("timm", {"size": (3, 3), "antialias": True}),
    ):
        teacher = load_teacher(dataclasses.replace(spec, position_rule=rule), saved(tmp_path, state))
        moved = torch.nn.functional.interpolate(plane, mode="bicubic", **settings).flatten(2).transpose(1, 2)
        torch.testing.assert_close(teacher.model.pos_embed[:, 1:].detach(), moved)
    assert [CATALOG[name].position_rule for name in ("dinov2-b", "dinov2-b-reg")] == ["bicubic-scale", "timm"]


def test_weights_that_fit_a_student_by_name_only_are_refused(tmp_path):
    state = random_state(resolve(PLAIN))
    file = saved(tmp_path, {**unic_file(state), "model": {"module.encoder.cls_token": torch.zeros(1, 1, 64)}})
    with pytest.raises(ConfigError, match="do not fit the student"):
        build_encoder(EncoderSpec("test_vit", 160, 16), seed=0, init=file)
