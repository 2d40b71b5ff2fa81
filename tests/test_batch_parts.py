"""The gradient of a batch that processes share, and take in parts, against that of the batch at once."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from pipelines.training.batch_parts import BatchParts, batch_parts
from pipelines.training.gradients import Gradients, sums_over_processes
from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError
from unic_cache.student.loss import LossTerms, distillation_loss, drop_uniforms, joined

BATCH, WIDTH, TEACHERS = 12, 5, ("a", "b", "c")
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(BATCH, 3, generator=GENERATOR, dtype=torch.float64)
TARGETS = {name: torch.randn(BATCH, WIDTH, generator=GENERATOR, dtype=torch.float64) for name in TEACHERS}
CHANCE = drop_uniforms(0, 0, BATCH, len(TEACHERS))
BROKEN = {3, 4, 5, 11}  # one whole group of three, and an image of another
LACKING = torch.ones(BATCH, len(TEACHERS)).bool()
LACKING[[0, 1, 7], [0, 2, 1]] = False


def model() -> torch.nn.ModuleDict:
    torch.manual_seed(1)
    return torch.nn.ModuleDict({name: torch.nn.Linear(3, WIDTH, dtype=torch.float64) for name in TEACHERS})


def naive_loss(student: torch.nn.ModuleDict, group: int, good: list[int]) -> torch.Tensor:
    """The mean over groups of sum c L / sum c, image by image."""
    averages = []
    for first in range(0, BATCH, group):
        total, count = torch.zeros((), dtype=torch.float64), 0
        for image in (place for place in range(first, first + group) if place in good):
            losses = {}
            for number, name in enumerate(TEACHERS):
                if LACKING[image, number]:
                    guess, target = student[name](IMAGES[image]), TARGETS[name][image]
                    apart = torch.nn.functional.smooth_l1_loss(guess, target)
                    losses[number] = (1 - torch.cosine_similarity(guess, target, dim=0) + apart) / 2
            top = max(losses, key=lambda number: losses[number].item())
            kept = [number for number in losses if number == top or CHANCE[image, number] >= 0.5]
            total, count = total + sum(losses[number] for number in kept), count + len(kept)
        if count:
            averages.append(total / count)
    return sum(averages) / len(averages)


def part_terms(student: torch.nn.ModuleDict, layout: BatchParts, part: int, good: list[int]) -> LossTerms:
    """What `Learner.training_terms` gives of a part."""
    places = torch.arange(layout.first(part), layout.first(part) + layout.images)
    good_B = torch.tensor([place in good for place in places.tolist()])
    rows = places[good_B] if good_B.any() else places
    guesses = {name: {"cls": student[name](IMAGES[rows])} for name in TEACHERS}
    targets = {name: {"cls": TARGETS[name][rows]} for name in TEACHERS}
    sizes = layout.group_sizes(part, good_B if good_B.any() else ~good_B)
    terms = distillation_loss(guesses, targets, CHANCE[rows], 0.5, present_Bn=LACKING[rows], groups=sizes)
    if good_B.any():
        return terms
    return dataclasses.replace(terms, loss=terms.loss * 0, totals=terms.totals * 0, counts=terms.counts * 0)


@pytest.mark.parametrize("broken", [set(), BROKEN], ids=["whole", "broken"])
@pytest.mark.parametrize(
    ("processes", "parts", "group"),
    [
        (1, 1, 12), (1, 4, 12), (1, 1, 3), (1, 2, 3), (1, 4, 3), (1, 4, 6), (1, 6, 4), (1, 12, 2),
        (4, 1, 12), (2, 3, 12), (2, 1, 4), (3, 1, 6), (4, 1, 2), (2, 2, 3), (2, 3, 6), (2, 6, 3), (4, 3, 6),
    ],
)  # fmt: skip
def test_processes_and_parts_give_the_gradient_of_the_batch(processes, parts, group, broken):
    good = [place for place in range(BATCH) if place not in broken]
    whole = model()
    loss = naive_loss(whole, group, good)
    loss.backward()

    layouts = [BatchParts(BATCH, processes, process, parts, group) for process in range(processes)]
    students = [model() for _ in layouts]
    terms = [
        [part_terms(student, layout, part, good) for part in range(parts)]
        for student, layout in zip(students, layouts, strict=True)
    ]
    others = [torch.cat([one.totals.detach(), one.counts, one.counts.new_zeros(1)]) for one in map(joined, terms)]
    fake = SimpleNamespace(backward=lambda loss: loss.backward(), reduce=lambda own, how: sum(others) + 0 * own)
    for student, layout, own in zip(students, layouts, terms, strict=True):
        gradients = Gradients(fake, student, layout)
        for part in range(parts):
            gradients.add(own[: part + 1], sums_over_processes(fake, joined(own), 0) if part + 1 == parts else None)
    found = sums_over_processes(fake, joined(terms[0]), 0)
    assert found.loss.item() == pytest.approx(loss.item(), abs=1e-12)
    for name, parameter in whole.named_parameters():
        mean = torch.stack([student.get_parameter(name).grad for student in students]).mean(dim=0)
        torch.testing.assert_close(mean, parameter.grad, msg=name)


@pytest.mark.parametrize(("parts", "group"), [(2, 4), (3, 3), (6, 4)])
def test_groups_that_lie_unevenly_across_parts_are_refused(parts, group):
    with pytest.raises(ConfigError, match=rf"groups of --loss-group {group} images must be made of whole parts"):
        BatchParts(12, 2, 0, parts, group)


@pytest.mark.parametrize(
    ("processes", "accumulate", "message"),
    [(3, 1, "--batch-size 8, over all processes, does not divide by 3$"), (4, 4, "4 processes of 4 parts each")],
)
def test_processes_that_a_batch_does_not_divide_by_are_refused(processes, accumulate, message):
    with pytest.raises(ConfigError, match=message):
        batch_parts(DistillConfig(batch_size=8, accumulate=accumulate), processes, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_group": 3}, "--batch-size 8 is not made of groups of --loss-group 3 images"),
        ({"loss_group": 4, "balancing": "image"}, "--loss-group 4 has no effect with --balancing image"),
    ],
)
def test_groups_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        DistillConfig(batch_size=8, **changes)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_processes_parts_are_the_batch_in_order_each_image_once(processes):
    layouts = [BatchParts(24, processes, process, 3, 24) for process in range(processes)]
    places = [
        place for one in layouts for part in range(3) for place in range(one.first(part), one.first(part) + one.images)
    ]
    assert places == list(range(24))
