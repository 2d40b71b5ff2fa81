"""A fixed rotation that spreads every channel over all others, so that one step suits them all.

Letters: D channels, D = 2**k m with m odd.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=32)
def hadamard(channels: int, device: torch.device) -> Tensor:
    """An orthonormal (D, D) float32 matrix: Sylvester's Hadamard matrix of order 2**k, Kronecker the DCT-II of order m.

    Where D is a power of two it is the Hadamard matrix alone: entries of one size, +-1 / sqrt(D). For 768 = 256 * 3 or
    112 = 16 * 7 the small factor mixes what is left.
    """
    odd = channels
    matrix = np.ones((1, 1))
    while odd % 2 == 0:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]]) / np.sqrt(2)
        odd //= 2
    rows, columns = np.mgrid[0:odd, 0:odd]
    dct = np.cos(np.pi * (columns + 0.5) * rows / odd) * np.sqrt(2 / odd)
    dct[0] /= np.sqrt(2)
    return torch.from_numpy(np.kron(matrix, dct)).to(device=device, dtype=torch.float32)
