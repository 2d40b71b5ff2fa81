"""Hugging Face's models, where transformers is installed: their files load, and give transformers' own outputs."""

import pytest
import timm
import torch
from safetensors.torch import load_file

from unic_cache.weights.state_dicts import find

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}
VIT = {"embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 0, "img_size": 56}
# Hugging Face's class, its settings, timm's model, its settings
MODELS = {
    "dinov2": ("Dinov2", {**SMALL}, "vit_base_patch14_dinov2", VIT),
    "dinov2-reg": ("Dinov2WithRegisters", {**SMALL, "num_register_tokens": 4}, "vit_base_patch14_reg4_dinov2", VIT),
    "dinov2-g": ("Dinov2", {**SMALL, "use_swiglu_ffn": True}, "vit_giant_patch14_dinov2", {**VIT, "mlp_ratio": 5.5}),
    "dinov3": (
        "DINOv3ViT",
        {**SMALL, "patch_size": 16, "image_size": 64, "intermediate_size": 128, "num_register_tokens": 4},
        "vit_base_patch16_dinov3_qkvb",
        {**VIT, "img_size": 64},
    ),
    "dinov3-gated": (
        "DINOv3ViT",
        {
            **SMALL,
            "patch_size": 16,
            "image_size": 64,
            "intermediate_size": 192,
            "num_register_tokens": 4,
            "use_gated_mlp": True,
            "hidden_act": "silu",
        },
        "vit_huge_plus_patch16_dinov3_qkvb",
        {**VIT, "img_size": 64, "mlp_ratio": 6},
    ),
    "dinov3-convnext": (
        "DINOv3ConvNext",
        {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1], "image_size": 64},
        "convnext_tiny.dinov3_lvd1689m",
        {"dims": (8, 16, 32, 64), "depths": (1, 1, 2, 1), "num_classes": 0},
    ),
    "ijepa": ("IJepa", {**SMALL, "intermediate_size": 128}, "vit_huge_patch14_gap_224.in1k_ijepa", VIT),
    "vit": (
        "ViT",
        {**SMALL, "intermediate_size": 128, "layer_norm_eps": 1e-6},
        "vit_base_patch16_224.mae",
        {**VIT, "patch_size": 14},
    ),
    "siglip": (
        "SiglipVision",
        {**SMALL, "intermediate_size": 128, "hidden_act": "gelu"},
        "vit_so400m_patch14_siglip_224",
        {**VIT, "mlp_ratio": 4},
    ),
    "clip": ("CLIPVision", {**SMALL, "intermediate_size": 128}, "vit_large_patch14_clip_quickgelu_224", VIT),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_file_of_hugging_faces_gives_its_outputs_in_timm(tmp_path, name):
    kind, settings, arch, options = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings)
    theirs = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    theirs.save_pretrained(tmp_path)
    ours = timm.create_model(arch, **options).eval()
    shapes = {key: tuple(value.shape) for key, value in ours.state_dict().items()}
    file = tmp_path / "model.safetensors"
    ours.load_state_dict(find(load_file(file), shapes, file).tensors, strict=True)
    size = settings["image_size"]
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        wanted, found = theirs(pixel_values=images), ours.forward_features(images)
        pooled = ours.forward_head(found, pre_logits=True)
    if found.ndim == 4:
        found = torch.cat([pooled[:, None], ours.head.norm(found).flatten(2).transpose(1, 2)], dim=1)
    last = wanted.last_hidden_state
    last = theirs.post_layernorm(last) if name == "clip" else last  # CLIP's comes before its norm
    torch.testing.assert_close(found, last, atol=2e-5, rtol=2e-4)
    if name == "siglip":
        torch.testing.assert_close(pooled, wanted.pooler_output, atol=2e-5, rtol=2e-4)
