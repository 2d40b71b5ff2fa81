"""Teachers distilled from several others, and what is made for dense tasks out of one."""

from unic_cache.teachers.presets.family import (
    CLIP,
    HALF,
    IMAGENET,
    NORMED,
    PATCHES_ONLY,
    THREE_CLS,
    TWO_CLS,
    Family,
    Row,
)

UNIC_FILES = "https://download.europe.naverlabs.com/ComputerVision/unic"
RADIO_ORDER = "the order of its CLS tokens: the teachers' in the authors' list, the untrained last"

AGGLOMERATED = (
    Family(
        title="UNIC",
        about="distilled from several teachers on ImageNet-1K",
        licence="CC-BY-NC-SA-4.0",
        rules=NORMED,
        colour=IMAGENET,
        source="file",
        position_rule="bicubic-scale",
        unchecked="the files' layout, from the authors' code; whether unic-l keeps 336 or 224 px positions",
        rows=(
            Row(
                "unic", "vit_base_patch16_224", "ViT-B/16", 224, 16, 85.8, 768, {"published": f"{UNIC_FILES}/unic.pth"}
            ),
            Row(
                "unic-l",
                "vit_large_patch14_224",
                "ViT-L/14",
                336,
                14,
                303.5,
                1024,
                {"published": f"{UNIC_FILES}/unic_l.pth"},
            ),
        ),
    ),
    Family(
        title="C-RADIO v3",
        about="distilled from CLIP, SigLIP 2, DINOv2 and SAM",
        licence="NVIDIA Open Model License",
        rules=THREE_CLS,
        colour=CLIP,
        sized=False,
        unchecked=RADIO_ORDER,
        rows=(
            Row("c-radio-v3-b", "naflexvit_base_patch16_radio_v3.c_radio", "ViT-B/16", 512, 16, 98.3, 768),
            Row("c-radio-v3-l", "naflexvit_large_patch16_radio_v3.c_radio", "ViT-L/16", 512, 16, 319.9, 1024),
            Row("c-radio-v3-h", "naflexvit_huge_patch16_radio_v3.c_radio", "ViT-H/16", 512, 16, 651.6, 1280),
            Row("c-radio-v3-g", "naflexvit_giant_patch16_radio_v3.c_radio", "ViT-g/16", 512, 16, 1159.6, 1536),
        ),
    ),
    Family(
        title="C-RADIO v4",
        about="distilled from SigLIP 2, DINOv3 and SAM 3",
        licence="NVIDIA Open Model License",
        rules=TWO_CLS,
        colour=CLIP,
        sized=False,
        unchecked=RADIO_ORDER,
        rows=(
            Row(
                "c-radio-v4-so400m", "naflexvit_so400m_patch16_radio_v4.c_radio", "ViT-SO400M/16", 512, 16, 431.2, 1152
            ),
            Row("c-radio-v4-h", "naflexvit_huge_patch16_radio_v4.c_radio", "ViT-H/16", 512, 16, 651.6, 1280),
        ),
    ),
    Family(
        title="PE spatial",
        about="Perception Encoder tuned for dense tasks",
        licence="Apache-2.0",
        rules=PATCHES_ONLY,
        colour=HALF,
        unchecked="without CLS: a guess; where it has a class token, +cls=raw-cls gives it",
        rows=(
            Row("pe-spatial-t", "vit_pe_spatial_tiny_patch16_512.fb", "ViT-T/16", 512, 16, 5.7, 192),
            Row("pe-spatial-s", "vit_pe_spatial_small_patch16_512.fb", "ViT-S/16", 512, 16, 22.0, 384),
            Row("pe-spatial-b", "vit_pe_spatial_base_patch16_512.fb", "ViT-B/16", 512, 16, 86.4, 768),
            Row("pe-spatial-l", "vit_pe_spatial_large_patch14_448.fb", "ViT-L/14", 448, 14, 304.0, 1024),
            Row("pe-spatial-g", "vit_pe_spatial_gigantic_patch14_448.fb", "ViT-G/14", 448, 14, 1851.9, 1536),
        ),
    ),
)
