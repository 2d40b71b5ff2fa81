"""How CUDA multiplies float32: exactly for teachers, whose features are stored; in TF32 for a student."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Run float32 matrix products and convolutions on CUDA in TF32 (10 bits of mantissa), or in full precision.

    torch's own default is mixed: products in full precision, convolutions in TF32.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
