"""How float32 is multiplied on CUDA: exactly by teachers, whose features are kept; in TF32 by a student."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Matrix products and convolutions of float32 on CUDA inside: in TF32 (10 bits of mantissa), or as float32 is.

    torch's own default is neither: products are exact there, and convolutions in TF32.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
