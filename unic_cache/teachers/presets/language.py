"""Teachers trained on images and text by other ways than CLIP's."""

from unic_cache.teachers.presets.family import CLIP, HALF, NORMED, POOLED, UNIT, Family, Row

LANGUAGE = (
    Family(
        title="SigLIP",
        about="image and text, sigmoid loss, WebLI",
        licence="Apache-2.0",
        rules=POOLED,
        colour=HALF,
        rows=(
            Row("siglip-b", "vit_base_patch16_siglip_224.webli", "ViT-B/16", 224, 16, 92.9, 768),
            Row("siglip-b-256", "vit_base_patch16_siglip_256.webli", "ViT-B/16", 256, 16, 92.9, 768),
            Row("siglip-b-384", "vit_base_patch16_siglip_384.webli", "ViT-B/16", 384, 16, 93.2, 768),
            Row("siglip-b-512", "vit_base_patch16_siglip_512.webli", "ViT-B/16", 512, 16, 93.5, 768),
            Row("siglip-l-256", "vit_large_patch16_siglip_256.webli", "ViT-L/16", 256, 16, 316.0, 1024),
            Row("siglip-l-384", "vit_large_patch16_siglip_384.webli", "ViT-L/16", 384, 16, 316.3, 1024),
            Row("siglip-so400m", "vit_so400m_patch14_siglip_224.webli", "ViT-SO400M/14", 224, 14, 427.7, 1152),
            Row("siglip-so400m-378", "vit_so400m_patch14_siglip_378.webli", "ViT-SO400M/14", 378, 14, 428.2, 1152),
            Row("siglip-b-256-i18n", "vit_base_patch16_siglip_256.webli_i18n", "ViT-B/16", 256, 16, 92.9, 768),
            Row(
                "siglip-so400m16-256-i18n",
                "vit_so400m_patch16_siglip_256.webli_i18n",
                "ViT-SO400M/16",
                256,
                16,
                427.9,
                1152,
            ),
        ),
    ),
    Family(
        title="SigLIP 2",
        about="image and text, sigmoid loss and more, WebLI",
        licence="Apache-2.0",
        rules=POOLED,
        colour=HALF,
        rows=(
            Row("siglip2-b32-256", "vit_base_patch32_siglip_256.v2_webli", "ViT-B/32", 256, 32, 94.6, 768),
            Row("siglip2-b", "vit_base_patch16_siglip_224.v2_webli", "ViT-B/16", 224, 16, 92.9, 768),
            Row("siglip2-b-256", "vit_base_patch16_siglip_256.v2_webli", "ViT-B/16", 256, 16, 92.9, 768),
            Row("siglip2-b-384", "vit_base_patch16_siglip_384.v2_webli", "ViT-B/16", 384, 16, 93.2, 768),
            Row("siglip2-b-512", "vit_base_patch16_siglip_512.v2_webli", "ViT-B/16", 512, 16, 93.5, 768),
            Row("siglip2-l-256", "vit_large_patch16_siglip_256.v2_webli", "ViT-L/16", 256, 16, 316.0, 1024),
            Row("siglip2-l-384", "vit_large_patch16_siglip_384.v2_webli", "ViT-L/16", 384, 16, 316.3, 1024),
            Row("siglip2-l-512", "vit_large_patch16_siglip_512.v2_webli", "ViT-L/16", 512, 16, 316.7, 1024),
            Row("siglip2-so400m", "vit_so400m_patch14_siglip_224.v2_webli", "ViT-SO400M/14", 224, 14, 427.7, 1152),
            Row("siglip2-so400m-378", "vit_so400m_patch14_siglip_378.v2_webli", "ViT-SO400M/14", 378, 14, 428.2, 1152),
            Row(
                "siglip2-so400m16-256", "vit_so400m_patch16_siglip_256.v2_webli", "ViT-SO400M/16", 256, 16, 427.9, 1152
            ),
            Row(
                "siglip2-so400m16-384", "vit_so400m_patch16_siglip_384.v2_webli", "ViT-SO400M/16", 384, 16, 428.3, 1152
            ),
            Row(
                "siglip2-so400m16-512", "vit_so400m_patch16_siglip_512.v2_webli", "ViT-SO400M/16", 512, 16, 428.8, 1152
            ),
            Row("siglip2-g-256", "vit_giantopt_patch16_siglip_256.v2_webli", "ViT-g-opt/16", 256, 16, 1163.2, 1536),
            Row("siglip2-g-384", "vit_giantopt_patch16_siglip_384.v2_webli", "ViT-g-opt/16", 384, 16, 1163.7, 1536),
        ),
    ),
    Family(
        title="SigLIP 2, NaFlex",
        about="any aspect ratio; here square",
        licence="Apache-2.0",
        rules=POOLED,
        colour=HALF,
        sized=False,
        rows=(
            Row("siglip2-naflex-b", "naflexvit_base_patch16_siglip.v2_webli", "NaFlex ViT-B/16", 384, 16, 92.9, 768),
            Row(
                "siglip2-naflex-so400m",
                "naflexvit_so400m_patch16_siglip.v2_webli",
                "NaFlex ViT-SO400M/16",
                384,
                16,
                427.9,
                1152,
            ),
        ),
    ),
    Family(
        title="AIMv2",
        about="autoregressive on pixels and text",
        licence="Apple ASCL",
        rules=POOLED,
        colour=CLIP,
        rows=(
            Row("aimv2-l", "aimv2_large_patch14_224.apple_pt", "ViT-L/14", 224, 14, 309.2, 1024),
            Row("aimv2-l-336", "aimv2_large_patch14_336.apple_pt", "ViT-L/14", 336, 14, 309.5, 1024),
            Row("aimv2-l-448", "aimv2_large_patch14_448.apple_pt", "ViT-L/14", 448, 14, 310.0, 1024),
            Row("aimv2-h", "aimv2_huge_patch14_224.apple_pt", "ViT-H/14", 224, 14, 680.9, 1536),
            Row("aimv2-h-336", "aimv2_huge_patch14_336.apple_pt", "ViT-H/14", 336, 14, 681.3, 1536),
            Row("aimv2-h-448", "aimv2_huge_patch14_448.apple_pt", "ViT-H/14", 448, 14, 682.0, 1536),
            Row("aimv2-1b", "aimv2_1b_patch14_224.apple_pt", "ViT-1B/14", 224, 14, 1235.0, 2048),
            Row("aimv2-1b-336", "aimv2_1b_patch14_336.apple_pt", "ViT-1B/14", 336, 14, 1235.6, 2048),
            Row("aimv2-1b-448", "aimv2_1b_patch14_448.apple_pt", "ViT-1B/14", 448, 14, 1236.5, 2048),
            Row("aimv2-3b", "aimv2_3b_patch14_224.apple_pt", "ViT-3B/14", 224, 14, 2720.7, 3072),
            Row("aimv2-3b-336", "aimv2_3b_patch14_336.apple_pt", "ViT-3B/14", 336, 14, 2721.6, 3072),
            Row("aimv2-3b-448", "aimv2_3b_patch14_448.apple_pt", "ViT-3B/14", 448, 14, 2723.0, 3072),
            Row("aimv2-l-dist", "aimv2_large_patch14_224.apple_pt_dist", "ViT-L/14, distilled", 224, 14, 309.2, 1024),
            Row(
                "aimv2-l-336-dist", "aimv2_large_patch14_336.apple_pt_dist", "ViT-L/14, distilled", 336, 14, 309.5, 1024
            ),
        ),
    ),
    Family(
        title="PE core",
        about="Perception Encoder: image, video and text",
        licence="Apache-2.0",
        rules=POOLED,
        colour=HALF,
        rows=(
            Row("pe-core-t", "vit_pe_core_tiny_patch16_384.fb", "ViT-T/16", 384, 16, 6.0, 192),
            Row("pe-core-s", "vit_pe_core_small_patch16_384.fb", "ViT-S/16", 384, 16, 23.6, 384),
            Row("pe-core-b", "vit_pe_core_base_patch16_224.fb", "ViT-B/16", 224, 16, 92.9, 768),
            Row("pe-core-l", "vit_pe_core_large_patch14_336.fb", "ViT-L/14", 336, 14, 316.1, 1024),
            Row("pe-core-g", "vit_pe_core_gigantic_patch14_448.fb", "ViT-G/14", 448, 14, 1880.1, 1536),
        ),
    ),
    Family(
        title="TIPSv2",
        about="image, text and self-distillation on WebLI",
        licence="Apache-2.0",
        rules=NORMED,
        colour=UNIT,
        unchecked="which of its two class tokens serves best; the second is +cls=norm-cls:1",
        rows=(
            Row("tipsv2-b", "vit_base_patch14_reg1_tipsv2.webli", "ViT-B/14", 448, 14, 86.3, 768),
            Row("tipsv2-l", "vit_large_patch14_reg1_tipsv2.webli", "ViT-L/14", 448, 14, 304.0, 1024),
            Row("tipsv2-so400m", "vit_so400m_patch14_reg1_tipsv2.webli", "ViT-SO400M/14", 448, 14, 413.4, 1152),
            Row("tipsv2-g", "vit_giant_patch14_reg1_tipsv2.webli", "ViT-g/14", 448, 14, 1135.9, 1536),
        ),
    ),
)
