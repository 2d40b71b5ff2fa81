"""The token rules for any network that runs a sequence of tokens through blocks and ends in a norm.

Only its blocks and its last norm are known; what passes them is seen by hooks, so that the library's own forward pass
runs unchanged. Letters: B images, N tokens of the whole sequence, P before the grid's, T of the grid, D channels.

| rule | value |
|---|---|
| norm-cls, norm-cls:p | prefix token 0, or p, of norm(last block's output) |
| raw-cls, raw-cls:p | the same of the last block's output |
| block:i, raw-block:i | prefix token 0, or the grid tokens, after block i, normed or not |
| pooled | what the library calls the pooled output, before any projection |
| grid-mean | mean of the grid tokens of the patch rule; without one, of norm-patch |
| norm-patch, raw-patch | tokens P.. of the last block's output, normed or not |

The norm runs on what comes out of the last block. For models that end in it (ViT, DINOv2, SigLIP) that is their own
last step; for CLIP, which norms its class token alone, it does the same to the patches, as timm and open_clip do.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from unic_cache.errors import TeacherError
from unic_cache.teachers.outside.loaded import Network, running
from unic_cache.teachers.spec import TeacherSpec
from unic_cache.teachers.token_rules import Tokens

Run = Callable[[Any, torch.Tensor], torch.Tensor | None]  # (model, images) -> its pooled output


class SequenceNetwork(Network):
    """A network as blocks and a norm. Without blocks, what the norm is given counts as the last block's output."""

    def __init__(
        self, model: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module, prefix: int, run: Run, spec: TeacherSpec
    ) -> None:
        super().__init__()
        self.model = model
        self.prefix = prefix
        self.spec = spec
        self._watched = tuple(blocks)
        self._norm = (norm,)  # in a tuple: both are parts of `model`, and no second copies of its weights
        self._run = run
        self._check()

    def _check(self) -> None:
        """TeacherError if the network lacks the norm, the prefix token or the block that a rule reads."""
        for rule in (*self.spec.summary_rules.values(), *self.spec.grid_rules.values()):
            name, _, number = rule.partition(":")
            why = None
            if name in {"norm-cls", "norm-patch", "block"} and isinstance(self._norm[0], nn.Identity):
                why = "it ends without a norm; take raw-cls, raw-patch or pooled"
            elif name in {"norm-cls", "raw-cls"} and int(number or 0) >= self.prefix:
                why = f"it has {self.prefix} tokens before its patches; take pooled or grid-mean"
            elif name in {"block", "raw-block"} and int(number) >= len(self._watched):
                why = f"its blocks are 0 to {len(self._watched) - 1}" if self._watched else "its blocks are not known"
            elif rule in self.spec.summary_rules.values() and "block" in name and not self.prefix:
                why = "it has no token before its patches; take pooled or grid-mean"
            if why is not None:
                raise TeacherError(f"teacher {self.spec.name}: rule {rule} does not fit {self.spec.arch}: {why}")

    def forward(self, images_BCHW: torch.Tensor) -> Tokens:
        """Every kind of the spec."""
        outputs: dict[int, torch.Tensor] = {}
        last = len(self._watched) - 1
        rules = (*self.spec.summary_rules.values(), *self.spec.grid_rules.values())
        read = {last, *(int(rule.partition(":")[2]) for rule in rules if "block" in rule)}
        with ExitStack() as hooks:
            for index in sorted(read) if self._watched else ():
                handle = self._watched[index].register_forward_hook(
                    lambda _m, _in, out, at=index: outputs.update({at: _first(out)})
                )
                hooks.callback(handle.remove)
            if not self._watched:
                handle = self._norm[0].register_forward_hook(lambda _m, given, _out: outputs.update({last: given[0]}))
                hooks.callback(handle.remove)
            with running(self.spec):
                pooled = self._run(self.model, images_BCHW)
                return self._tokens(outputs, last, pooled)

    def _tokens(self, outputs: dict[int, torch.Tensor], last: int, pooled: torch.Tensor | None) -> Tokens:
        norm = self._norm[0]

        def sequence(rule: str) -> torch.Tensor:
            name, _, number = rule.partition(":")
            raw_BND = outputs[int(number) if "block" in name else last]
            return raw_BND if name.startswith("raw") else norm(raw_BND)

        grids = {kind: sequence(rule)[:, self.prefix :] for kind, rule in self.spec.grid_rules.items()}
        found: Tokens = {}
        for kind, rule in self.spec.summary_rules.items():
            name, _, number = rule.partition(":")
            if name == "pooled":
                if pooled is None:
                    raise TeacherError(
                        f"teacher {self.spec.name}: rule pooled does not fit {self.spec.arch}: it pools nothing; take "
                        "norm-cls or grid-mean"
                    )
                found[kind] = pooled
            elif name == "grid-mean":
                rest = "raw-patch" if isinstance(norm, nn.Identity) else "norm-patch"
                grid_BTD = next(iter(grids.values()), None)
                found[kind] = (sequence(rest)[:, self.prefix :] if grid_BTD is None else grid_BTD).mean(dim=1)
            else:
                found[kind] = sequence(rule)[:, 0 if "block" in name else int(number or 0)]
        return found | grids


def _first(output: Any) -> torch.Tensor:
    """A block's tokens, where some libraries give a tuple that begins with them."""
    tokens: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return tokens
