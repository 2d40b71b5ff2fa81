"""EfficientNet-Lite0's published tensor names to timm's: by name, whatever their order.

The authors number all blocks consecutively; timm numbers them within stages. The first block, without expansion, has
two convolutions; every other block has three.

| theirs | timm's, first block | timm's, other blocks |
|---|---|---|
| `_expand_conv`, `_bn0` | - | `conv_pw`, `bn1` |
| `_depthwise_conv`, `_bn1` | `conv_dw`, `bn1` | `conv_dw`, `bn2` |
| `_project_conv`, `_bn2` | `conv_pw`, `bn2` | `conv_pwl`, `bn3` |
"""

import re

STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks
PLACES = [(stage, block) for stage, count in enumerate(STAGES) for block in range(count)]
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def timm_name(name: str) -> str:
    """timm's name of a published tensor, under any prefix; other names unchanged."""
    block = re.fullmatch(r"(|.*\.)_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if block is not None and int(block[2]) < len(PLACES):
        stage, place = PLACES[int(block[2])]
        part = (OTHER if int(block[2]) else FIRST).get(block[3])
        return name if part is None else f"{block[1]}blocks.{stage}.{place}.{part}.{block[4]}"
    outer = None if "_blocks." in name else re.fullmatch(r"(|.*\.)(_\w+)\.(\w+)", name)
    part = None if outer is None else OUTER.get(outer[2])
    return name if part is None or outer is None else f"{outer[1]}{part}.{outer[3]}"
