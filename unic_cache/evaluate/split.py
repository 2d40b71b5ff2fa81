"""A seeded split of labelled images, class by class.

Letters: N images.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unic_cache import draws


class Part(IntEnum):
    """What is held out; splits of different parts are independent."""

    VALIDATION = 0
    TEST = 1


def held_out(labels_N: Tensor, share: float, seed: int, part: Part) -> npt.NDArray[np.bool_]:
    """Which images are held out: int(share n) of the n images of each class, and at least 1 if there are 2 or more.

    A class with a single image keeps it. The draws depend on the seed, the part and the class's rank among the classes.
    """
    _, class_N = torch.unique(labels_N.cpu(), return_inverse=True)
    held_N = np.zeros(len(class_N), np.bool_)
    for number in range(int(class_N.max()) + 1 if len(class_N) else 0):
        members = np.flatnonzero(class_N.numpy() == number)
        order = draws.permutation(draws.words(draws.Purpose.SPLIT, seed, part, number, len(members)))
        count = min(max(1, int(share * len(members))), len(members) - 1)
        held_N[members[order[:count]]] = True
    return held_N
