"""Whether other software reads a folder as the student that went into it."""

import contextlib
import io
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from pipelines.command.failures import one_line
from unic_cache.errors import UnicCacheError

TOLERANCE = 1e-5  # of features, as a share of the largest


@torch.no_grad()
def check_loads(folder: Path, encoder: nn.Module, img_size: int) -> None:
    """UnicCacheError unless timm loads the folder, and its model gives what the encoder gives for an image of noise."""
    images_BCHW = torch.rand(1, 3, img_size, img_size, generator=torch.Generator().manual_seed(0))
    wanted_BD = encoder(images_BCHW)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
        found_BD = model.eval()(images_BCHW)
    except Exception as error:  # whatever timm's models raise
        raise UnicCacheError(
            f"timm {timm.__version__} cannot load what would be exported ({type(error).__name__}: "
            f"{one_line(str(error))[:300]}); nothing was written. Try another release of timm, or --format onnx"
        ) from error
    largest = TOLERANCE * float(wanted_BD.abs().max())
    if found_BD.shape != wanted_BD.shape or not torch.allclose(found_BD, wanted_BD, 0, largest, equal_nan=True):
        raise UnicCacheError(
            f"timm {timm.__version__} makes another network of what would be exported: its features differ; nothing "
            "was written. Try another release of timm, or --format onnx"
        )
