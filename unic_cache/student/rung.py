"""One level's share of the guesses: the MLPs of all heads that read the same tokens, as one function.

One product for all first layers, one GELU, and one product per teacher width for all second layers, added to the sum in
place. Backward keeps only the hidden values before GELU.

Letters: R rows, the tokens of all images; D the encoder's width, P a teacher's; n heads, m of them of one width; H a
head's hidden width; nH and Q the hidden and the teachers' widths side by side.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu


class Rung(torch.autograd.Function):
    """total + GELU(x W1' + b1) W2' for the n heads of one level, in place and in the precision of `total`.

    Backward recomputes GELU and the joined weights. With one function per level, a level's memory is free and its
    gradients are known before the next one begins.
    """

    @staticmethod
    def forward(ctx: Any, total_RQ: Tensor, x: Tensor, *weights: Tensor) -> Tensor:
        """`weights` are n first weights (H, D), n first biases (H,) and n second weights (P, H)."""
        n = len(weights) // 3
        first, bias, second = weights[:n], weights[n : 2 * n], weights[2 * n :]
        with torch.autocast(x.device.type, enabled=False):
            x_RD = x.to(total_RQ.dtype).flatten(0, -2)
            hidden_RnH = torch.addmm(_joined(bias, x_RD), x_RD, _joined(first, x_RD).T)
            active_nRH = _each(gelu(hidden_RnH), n)
            for heads, columns in _equal_widths(second):
                weight_mPH = _joined(second[heads], x_RD).view(-1, *second[heads.start].shape)
                _each(total_RQ[:, columns], len(weight_mPH)).baddbmm_(active_nRH[heads], weight_mPH.mT)
        ctx.mark_dirty(total_RQ)
        ctx.save_for_backward(x, hidden_RnH, *weights)
        return total_RQ

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RQ: Tensor) -> tuple[Tensor, ...]:
        """The gradients of `total`, `x` and the weights."""
        x, hidden_RnH, *weights = ctx.saved_tensors
        n = len(weights) // 3
        first, bias, second = weights[:n], weights[n : 2 * n], weights[2 * n :]
        grads_second: list[Tensor] = []
        with torch.autocast(x.device.type, enabled=False):
            x_RD = x.to(hidden_RnH.dtype).flatten(0, -2)
            values_RnH = gelu(hidden_RnH)  # becomes its own gradient, head by head, then that of `hidden`
            for heads, columns in _equal_widths(second):
                weight_mPH = _joined(second[heads], x_RD).view(-1, *second[heads.start].shape)
                grad_mRP = _each(grad_RQ[:, columns], len(weight_mPH))
                values_mRH = _each(values_RnH, n)[heads]
                grads_second += torch.bmm(grad_mRP.mT, values_mRH).to(second[0].dtype)
                torch.bmm(grad_mRP, weight_mPH, out=values_mRH)
            torch.ops.aten.gelu_backward.grad_input(values_RnH, hidden_RnH, grad_input=values_RnH)
            grad_x = (values_RnH @ _joined(first, x_RD)).to(x.dtype).view(x.shape)
            grads_first = (values_RnH.T @ x_RD).to(first[0].dtype).chunk(n)
            grads_bias = values_RnH.sum(dim=0, dtype=bias[0].dtype).chunk(n)
        return grad_RQ, grad_x, *grads_first, *grads_bias, *grads_second


def _joined(weights: Sequence[Tensor], like: Tensor) -> Tensor:
    """The weights stacked along their first axis, in the type of `like`; a single one of that type is not copied."""
    if len(weights) == 1:
        return weights[0].to(like.dtype)
    shape = (sum(map(len, weights)), *weights[0].shape[1:])
    return torch.cat(tuple(weights), out=like.new_empty(shape))


def _each(values_RC: Tensor, count: int) -> Tensor:
    """The columns as `count` blocks: a view (count, R, C / count)."""
    return values_RC.view(len(values_RC), count, -1).transpose(0, 1)


def _equal_widths(second: Sequence[Tensor]) -> Iterator[tuple[slice, slice]]:
    """For each run of heads of equal width: the slice of heads, and the slice of their columns in the sum."""
    head = column = 0
    for width, run in groupby(second, key=len):
        count = len(list(run))
        yield slice(head, head + count), slice(column, column + count * width)
        head, column = head + count, column + count * width
