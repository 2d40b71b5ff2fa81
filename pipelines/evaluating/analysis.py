"""How much of an encoder is used: of its feature space by the spectrum, of a student's weights by leaving some out.

Letters: N images, D channels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pipelines.command.progress import say
from pipelines.evaluating.encoders import STUDENT, Encoder, from_module
from pipelines.evaluating.features import KeptFeatures
from pipelines.evaluating.labelled import Usable
from pipelines.evaluating.measuring import Sides, examples, settings_of, sides_of
from pipelines.evaluating.row_files import PickedRows
from unic_cache.config import EvaluateConfig
from unic_cache.evaluate.knn import knn_task
from unic_cache.evaluate.spectrum import first_components, spectrum
from unic_cache.evaluate.task import Examples
from unic_cache.student.pruning import pruned

SHARES = range(10, 100, 10)  # percent of the weights


def with_pruned(encoders: Sequence[Encoder], device: torch.device) -> list[Encoder]:
    """The encoders, and each student without its smallest weights."""
    found = list(encoders)
    for one in encoders:
        if one.kind == STUDENT and one.module is not None and one.spec is not None:
            for share in SHARES:
                module = pruned(one.module, share / 100)
                lighter = from_module(pruned_name(one.name, share), STUDENT, module, one.spec, device)
                found.append(dataclasses.replace(lighter, grid=None))  # its patch tokens are of no use
    return found


def pruned_name(name: str, share: int) -> str:
    """What a student without `share` percent of its weights is called."""
    return f"{name} without {share}% of its weights"


def analysed(
    config: EvaluateConfig,
    sets: Sequence[Usable],
    features: Mapping[str, Sequence[KeptFeatures]],
    encoders: Sequence[Encoder],
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """By encoder: the spectrum of its features, and k-NN on the first components and without the smallest weights."""
    train, test = sets[0], sets[-1]
    sides = sides_of("knn", train, test, config.seed, np.zeros((0, 0, 0)))
    known, asked = (set(one.images.labels_N[r].tolist()) for one, r in ((train, sides.train), (test, sides.test)))
    labelled = len(known) > 1 and bool(asked) and asked <= known
    if not labelled:
        say("analysis: no accuracies, since the images have no two classes, or training lacks one of the test images'")
    found: dict[str, dict[str, Any]] = {}
    for one in encoders:
        kept, own = features[one.name], {}
        for kind, arrays in (
            ("summary", [part.summary_ND for part in kept]),
            ("patches", [part.patches_NTD for part in kept if part.patches_NTD is not None]),
        ):
            if arrays:
                blocks = [PickedRows(a, np.flatnonzero(s.good_N)) for a, s in zip(arrays, sets, strict=True)]
                own[kind] = dataclasses.asdict(spectrum(blocks))
        if labelled:
            accuracy = Accuracy(config, sets, sides, device)
            own["components"] = accuracy.by_components(one, kept)
            if one.kind == STUDENT:
                own["pruning"] = accuracy.by_weights(one, features)
        found[one.name] = {"kind": one.kind, **own}
    return found


class Accuracy:
    """k-NN at the table's k of changed features, on the images of the task."""

    def __init__(self, config: EvaluateConfig, sets: Sequence[Usable], sides: Sides, device: torch.device) -> None:
        self.sets, self.sides = sets, sides
        self.settings = dataclasses.replace(settings_of(config, sides, device), neighbours=(config.k,))

    def by_components(self, encoder: Encoder, kept: Sequence[KeptFeatures]) -> dict[str, Any]:
        """By number of principal components of the training features: 1, 2, 4, ... and all."""
        train, test = self._pair(encoder, kept)
        counts = [2**power for power in range(20) if 2**power < train.summary_ND.shape[1]]
        projected = first_components(train.summary_ND, test.summary_ND)
        found = {
            str(count): self._accuracy(
                dataclasses.replace(train, summary_ND=projected[0][:, :count]),
                dataclasses.replace(test, summary_ND=projected[1][:, :count]),
            )
            for count in counts
        }
        return {"metric": f"{self.settings.k}-NN", **found, str(train.summary_ND.shape[1]): self._accuracy(train, test)}

    def by_weights(self, encoder: Encoder, features: Mapping[str, Sequence[KeptFeatures]]) -> dict[str, Any]:
        """By percent of the weights that are set to zero."""
        names = {0: encoder.name} | {share: pruned_name(encoder.name, share) for share in SHARES}
        found = {str(share): self._accuracy(*self._pair(encoder, features[name])) for share, name in names.items()}
        return {"metric": f"{self.settings.k}-NN", **found}

    def _pair(self, encoder: Encoder, kept: Sequence[KeptFeatures]) -> tuple[Examples, Examples]:
        none = np.zeros((0, 0, 0))
        train = examples(encoder, "knn", kept[0], self.sets[0], self.sides.train, none)
        if self.sides.leave_one_out:
            return train, train
        return train, examples(encoder, "knn", kept[-1], self.sets[-1], self.sides.test, none)

    def _accuracy(self, train: Examples, test: Examples) -> float:
        metric = next(iter(knn_task(train, test, self.settings).values()))
        return float(metric.statistic(np.asarray(metric.sums_NF.sum(axis=0))))
