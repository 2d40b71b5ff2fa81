"""A linear layer trained by SGD, many trials at once: for sets too large for L-BFGS, such as ImageNet.

UNIC's protocol: L2-normalised features, cross entropy, momentum 0.9, batches of 1,024 with the last, smaller one kept,
and 100 epochs; in epoch e the learning rate is lr (1 + cos(pi e / 100)) / 2. Of 40 trials, learning rates in [0.1, 100]
and weight decays in [1e-12, 1e-4], both log-uniform, the best one on validation images is trained again on all images.

All trials see the same batches, so that their layers are one matrix of T x K columns. The problem is convex: layers
start at zero. The bias is the weight of a last input that is 1, and decays as the others do.

Letters: M training images, D inputs (channels and the 1), K classes, T trials, B images of a batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, pad

from unic_cache import draws

EPOCHS, BATCH, MOMENTUM, TRIALS = 100, 1024, 0.9, 40
RATES, DECAYS = (-1.0, 2.0), (-12.0, -4.0)  # exponents of 10
TOGETHER = 2**28  # numbers of weights, momenta, gradients and logits in memory


@dataclass(frozen=True)
class Trial:
    """Hyperparameters of one training."""

    rate: float
    decay: float


def trials(seed: int) -> list[Trial]:
    """40 trials, drawn from the seed."""
    uniform = draws.uniforms(draws.words(draws.Purpose.HYPERPARAMETERS, seed, 0, 0, 2 * TRIALS)).reshape(TRIALS, 2)
    return [Trial(_log_uniform(float(u), RATES), _log_uniform(float(v), DECAYS)) for u, v in uniform]


def inputs(features_MC: Tensor, device: torch.device) -> Tensor:
    """The L2-normalised features (M, C) and a 1: (M, C + 1), float32."""
    return pad(normalize(features_MC.to(device).float(), dim=1), (0, 1), value=1.0)


def best_trial(
    tried: Sequence[Trial],
    train_MD: Tensor,
    targets_M: Tensor,
    validation_ND: Tensor,
    labels_N: Tensor,
    classes: int,
    seed: int,
) -> Trial:
    """The trial with the highest accuracy on the validation images, then the lowest loss. Trials that diverge lose."""
    size = classes * (3 * train_MD.shape[1] + 2 * max(BATCH, len(validation_ND)))
    together = max(1, TOGETHER // size)
    scores: list[tuple[float, float]] = []
    for start in range(0, len(tried), together):
        weights_DTK = train(train_MD, targets_M, classes, tried[start : start + together], seed)
        for weights_DK in weights_DTK.unbind(dim=1):
            logits_NK = validation_ND @ weights_DK
            loss = float(cross_entropy(logits_NK, labels_N))
            accuracy = float((logits_NK.argmax(dim=1) == labels_N).double().mean())
            scores.append((accuracy, -loss) if math.isfinite(loss) else (-1.0, -math.inf))
    return tried[max(range(len(tried)), key=scores.__getitem__)]


def train(train_MD: Tensor, targets_M: Tensor, classes: int, tried: Sequence[Trial], seed: int) -> Tensor:
    """The layers of all trials, (D, T, K), after 100 epochs. `targets_M` are class numbers from 0 to K - 1."""
    count, width = train_MD.shape
    weights_DTK = train_MD.new_zeros(width, len(tried), classes)
    momentum_DTK = torch.zeros_like(weights_DTK)
    rates_T1, decays_T1 = (
        train_MD.new_tensor([getattr(one, name) for one in tried])[:, None] for name in ("rate", "decay")
    )
    for epoch in range(EPOCHS):
        order_M = torch.from_numpy(draws.permutation(draws.words(draws.Purpose.HEAD_ORDER, seed, 0, epoch, count)))
        annealed_T1 = rates_T1 * ((1 + math.cos(math.pi * epoch / EPOCHS)) / 2)
        for rows_B in torch.split(order_M.to(train_MD.device), BATCH):
            batch_BD = train_MD[rows_B]
            logits_BTK = (batch_BD @ weights_DTK.flatten(1)).view(-1, len(tried), classes)
            errors_BTK = logits_BTK.softmax(dim=2)  # the gradient of cross entropy: chances minus the truth
            errors_BTK[torch.arange(len(rows_B), device=rows_B.device), :, targets_M[rows_B]] -= 1
            gradient_DTK = (batch_BD.T @ errors_BTK.flatten(1)).view_as(weights_DTK) / len(rows_B)
            gradient_DTK += decays_T1 * weights_DTK
            momentum_DTK.mul_(MOMENTUM).add_(gradient_DTK)
            weights_DTK -= annealed_T1 * momentum_DTK
    return weights_DTK


def _log_uniform(uniform: float, exponents: tuple[float, float]) -> float:
    low, high = exponents
    return float(10.0 ** (low + uniform * (high - low)))
