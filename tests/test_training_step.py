"""One training step asks nothing of the device but its work: found on a fake one, without a GPU."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from pipelines.training.learner import Learner
from pipelines.training.targets import Cached, Targets
from tests.fake_device import FakeDevice, HostWaitsError
from unic_cache.config import Views
from unic_cache.store.codecs.codec import Features
from unic_cache.store.sampling import random_positions
from unic_cache.stream.address import Address
from unic_cache.stream.batches import Batch
from unic_cache.student.backbone import anatomy, build_encoder, encoder_spec, prepare
from unic_cache.student.ladder import Ladder
from unic_cache.student.loss import token_loss
from unic_cache.student.projectors import Student
from unic_cache.student.schedule import optimizer
from unic_cache.token_kinds import TokenKind

VIEWS = Views("unic", 48, 0)  # larger than the student's input, so that they are resized
BATCH = 4


@pytest.fixture
def teachers(cache):
    return tuple(cache.teachers.values())


def batch_of(teachers, good):
    """A batch as the stream gives it: everything is on the CPU."""
    parts = {
        teacher.name: {
            array.name: torch.zeros(BATCH, *array.row, dtype=getattr(torch, array.dtype))
            for array in teacher.member.arrays
        }
        for teacher in teachers
    }
    views = torch.zeros(BATCH, 48, 48, 3, dtype=torch.uint8)
    return Batch([Address(0, 0, row, 0) for row in range(BATCH)], views, parts, torch.tensor(good))


def learner_on(device, accelerator, config, cache, teachers):
    """What `distill` makes of a cache."""
    spec = encoder_spec("test_vit", 32, 16, config.drop_path)
    encoder = build_encoder(spec, 0)
    kinds = {teacher.name: teacher.kinds for teacher in teachers}
    student = Student(encoder, Ladder(anatomy(spec).widths, kinds, 0)).to(device)
    accelerator.state.device = device
    targets = Targets(config, cache, teachers, VIEWS, Cached(teachers), device)
    return Learner(student, spec, teachers, targets, config, accelerator), student


@pytest.mark.parametrize("good", [[True] * BATCH, [True, False, True, True], [False] * BATCH])
@pytest.mark.parametrize("tokens", [None, 2])
def test_a_training_step_reads_nothing_back(tokens, good, training, cache, teachers):
    """In float32 (without CUDA torch has no autocast for it), and all but backward: see `fake_device`."""
    config = training(tokens=tokens, batch_size=BATCH, standardize="phi-s")
    accelerator = Accelerator(cpu=True)
    with FakeDevice() as fake:
        learner, student = learner_on(fake.device, accelerator, config, cache, teachers)
        meter, batch, adamw = learner.meter(), batch_of(teachers, good), optimizer(student, 1e-3, 0.03)
        for step in range(2):
            fake.to_device.clear()
            fake.blocking.clear()
            terms = learner.training_terms(batch, step)
            for parameter in student.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            adamw.step()
            adamw.zero_grad(set_to_none=True)
            meter.add(terms, float(batch.good_B.any()), batch.broken)
    assert (fake.to_host, fake.blocking) == ([], [])
    arrays = sum(len(teacher.member.arrays) for teacher in teachers)
    positions, rows = int(tokens is not None), int(0 < sum(good) < BATCH)
    assert len(fake.to_device) == 2 + arrays + positions + rows, fake.to_device  # views, who is dropped, codes


@pytest.mark.parametrize("tokens", [None, 2])
def test_backward_reads_nothing_back(tokens, training, cache, teachers):
    config, cpu = training(tokens=tokens, batch_size=BATCH), torch.device("cpu")
    learner, _ = learner_on(cpu, Accelerator(cpu=True), config, cache, teachers)
    loss = learner.training_terms(batch_of(teachers, [True] * BATCH), 0).loss
    with FakeDevice("cpu"):
        loss.backward()


def test_two_summary_tokens_and_patches_are_learned_alike(training, cache):
    """Targets, guesses and loss of a teacher as C-RADIO is, of whose four patch tokens the loss sees two."""
    kinds = {"clip": TokenKind(6), "dino": TokenKind(5), "patch": TokenKind(4, (2, 2))}
    ones = {kind: np.ones(tokens.channels) for kind, tokens in kinds.items()}
    codec = SimpleNamespace(decode=lambda arrays: {**arrays}, features=Features("f16", {"patch": kinds["patch"]}))
    teacher = SimpleNamespace(name="radio", kinds=kinds, codec=codec, calibration=SimpleNamespace(std=ones))
    cpu, config = torch.device("cpu"), training(tokens=2, batch_size=BATCH, drop_path=0.0)
    learner, student = learner_on(cpu, Accelerator(cpu=True), config, cache, (teacher,))
    generator = torch.Generator().manual_seed(0)
    arrays = {"clip": torch.randn(BATCH, 6, generator=generator), "dino": torch.randn(BATCH, 5, generator=generator)}
    arrays["patch"] = torch.randn(BATCH, 4, 4, generator=generator)
    views = torch.randint(256, (BATCH, 48, 48, 3), dtype=torch.uint8, generator=generator)
    wanted = [Address(0, 0, row, 0) for row in range(BATCH)]
    terms = learner.training_terms(Batch(wanted, views, {"radio": arrays}, torch.ones(BATCH, dtype=torch.bool)), 0)

    places = random_positions(VIEWS.seed, [(cache.entry(0, 0).keys[row], 0) for row in range(BATCH)], (2, 2), 2)
    guesses = student(prepare(views, learner.spec))["radio"]
    losses = []
    for image in range(BATCH):
        at = places[image].tolist()
        summaries = [token_loss(guesses[kind][image], arrays[kind][image]) for kind in ("clip", "dino")]
        patches = [token_loss(guesses["patch"][image, place], arrays["patch"][image, place]) for place in at]
        losses.append((sum(summaries) + sum(patches) / 2) / 3)
    torch.testing.assert_close(terms.losses, torch.stack(losses)[None].detach())
    meter = learner.meter()
    meter.add(terms)
    assert list(meter.read()["teachers"]["radio"]) == ["clip", "dino", "patch", "coefficient", "top"]


def test_reading_the_meter_waits_for_the_device(training, cache, teachers):
    with FakeDevice() as fake:
        learner, _ = learner_on(fake.device, Accelerator(cpu=True), training(), cache, teachers)
        meter = learner.meter()
        with pytest.raises(HostWaitsError):
            meter.read()


def test_the_fake_device_finds_what_waits():
    with FakeDevice() as fake:
        values = torch.arange(3).to(fake.device)
        for wait in (
            values.sum().item,
            values.nonzero,
            values.tolist,
            lambda: bool(values[0] > 1),
            lambda: values[values > 1],
            lambda: torch.equal(values, values),
        ):
            with pytest.raises(HostWaitsError):
                wait()
        assert values.cpu().tolist() == [1, 1, 1]
        assert (fake.to_device, fake.blocking, fake.to_host) == (["int64 (3,)"],) * 3
        torch.zeros(2).to(fake.device, non_blocking=True)
        torch.zeros(4, device=fake.device).copy_(torch.zeros(4), non_blocking=True)
        assert fake.to_device[1:] == ["float32 (2,)", "float32 (4,)"]
        assert len(fake.blocking) == 1
    with FakeDevice("cpu"), pytest.raises(HostWaitsError):
        torch.arange(3).sum().item()
