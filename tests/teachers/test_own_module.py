"""A module of one's own as a teacher: its tokens as they are, and everything that it may do wrong."""

import itertools

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.teachers.outside_models import normalised, views
from unic_cache.errors import TeacherError
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import load_teacher
from unic_cache.teachers.outside import factory, own_module
from unic_cache.token_kinds import TokenKind

HERE = f"py:{__name__}:"


class Plain(nn.Module):
    """Patches of a convolution, and their mean."""

    name, version, licence = "plain", "1", "ours"
    size, grid = 56, 4
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, 8, 14, 14)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, images):
        patch_BTD = self.norm(self.stem(images)).flatten(2).transpose(1, 2)
        return {"cls": patch_BTD.mean(dim=1), "patch": patch_BTD}


def plain() -> nn.Module:
    return Plain()


def sized(size: int = 56) -> nn.Module:
    model = Plain()
    model.size, model.grid = size, size // 14
    return model


class Broken(Plain):
    """Does one thing wrong: what the test sets before."""

    change = staticmethod(lambda found: found)

    def forward(self, images):
        return type(self).change(super().forward(images))


def broken() -> nn.Module:
    return Broken()


def with_attribute() -> nn.Module:
    model = Plain()
    for key, value in CHANGES.items():
        setattr(model, key, value)
    return model


CHANGES: dict = {}
COUNT = itertools.count()


def random_weights() -> nn.Module:
    return Plain(next(COUNT))


def hidden_noise() -> nn.Module:
    """What is random is in no state dict."""
    model = Plain()
    torch.manual_seed(next(COUNT))
    model.register_buffer("noise", torch.randn(3), persistent=False)
    return model


class Unregistered(Plain):
    """What is random is a plain attribute, which no digest sees."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(next(COUNT))
        self.turn = torch.randn(8, 8)

    def forward(self, images):
        return {kind: values @ self.turn for kind, values in super().forward(images).items()}


class Restless(Plain):
    """In training whatever is said, as by functional dropout."""

    def forward(self, images):
        return {"patch": nn.functional.dropout(super().forward(images)["patch"], 0.5, training=True)}


class Sociable(Plain):
    """Normed by the batch at hand."""

    def forward(self, images):
        self.norm.train()
        return super().forward(images)


def fails() -> nn.Module:
    raise OSError("no such checkpoint")


def leaves() -> nn.Module:
    raise SystemExit(0)


def empty() -> nn.Module:
    """Without values, as models too large for one device begin."""
    return Plain().to("meta")


def no_module() -> int:
    return 3


@pytest.fixture(autouse=True)
def forgotten():
    own_module._described.cache_clear()
    from unic_cache.teachers.outside.opening import outside_spec

    outside_spec.cache_clear()
    yield
    CHANGES.clear()
    Broken.change = staticmethod(lambda found: found)


def test_tokens_are_the_modules_own():
    teacher = load_teacher(resolve(f"{HERE}plain"))
    with torch.inference_mode():
        expected = Plain().eval()(normalised(views()))
    torch.testing.assert_close(teacher(views()), dict(expected))
    spec = teacher.spec
    assert spec.kinds == {"cls": TokenKind(8), "patch": TokenKind(8, (4, 4))}
    assert (spec.version, spec.licence, spec.about) == ("1", "ours", "plain, version 1")
    assert (spec.source, spec.weights_file_sha256) == (f"{HERE}plain", None)
    assert spec.weights_sha256 == load_teacher(resolve(f"{HERE}plain")).spec.weights_sha256
    assert spec.from_json(spec.to_json()) == spec
    assert not any(values.requires_grad for values in teacher.model.parameters())


def test_rules_and_sizes():
    teacher = load_teacher(resolve(f"{HERE}sized@84+cls=grid-mean"))
    assert teacher.spec.kinds["patch"].grid == (6, 6)
    found = teacher(views(84))
    torch.testing.assert_close(found["cls"], found["patch"].mean(dim=1))
    assert load_teacher(resolve(f"{HERE}sized+patch=none")).spec.kinds.keys() == {"cls"}
    with pytest.raises(TeacherError, match=r"CLS rule 'norm-cls' is unknown; choose from own, grid-mean"):
        resolve(f"{HERE}plain+cls=norm-cls")
    with pytest.raises(TeacherError, match=r"its factory takes no argument `size`; leave out @84"):
        resolve(f"{HERE}plain@84")


def test_a_summary_alone_needs_no_grid():
    CHANGES.update(grid=None)
    with pytest.raises(TeacherError, match=r"gives patch tokens, but its grid is None"):
        resolve(f"{HERE}with_attribute")
    Broken.change = staticmethod(lambda found: {"cls": found["cls"]})
    Broken.grid = None
    try:
        assert load_teacher(resolve(f"{HERE}broken")).spec.kinds == {"cls": TokenKind(8)}
    finally:
        Broken.grid = 4


def test_weights_of_a_file_are_loaded_strictly(tmp_path):
    state = Plain(5).state_dict()
    save_file(state, tmp_path / "own.safetensors")
    teacher = load_teacher(resolve(f"{HERE}random_weights"), str(tmp_path / "own.safetensors"))
    assert torch.equal(teacher.model.module.stem.weight, state["stem.weight"])
    save_file({**state, "more": torch.ones(2)}, tmp_path / "more.safetensors")
    with pytest.raises(TeacherError, match=r"more \(2,\) is not part of it"):
        load_teacher(resolve(f"{HERE}plain"), str(tmp_path / "more.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: [found["cls"]], r"its module gives list; it must give 'cls', 'patch' or both"),
        (lambda found: {**found, "tokens": 1}, r"gives 'cls', 'patch', 'tokens'; it must give"),
        (lambda found: {"cls": found["cls"]}, r"gives 'cls', without 'patch'; leave a kind out with"),
        (lambda found: {**found, "cls": found["cls"][:1]}, r"its cls for 2 images is torch.float32 of shape \(1, 8\)"),
        (
            lambda found: {**found, "patch": found["patch"][:, 1:]},
            r"its patch for 2 images .* shape \(2, 15, 8\), and must be .* \(2, 16, D\)",
        ),
        (lambda found: {**found, "patch": found["patch"].int()}, r"is torch.int32 of shape"),
        (lambda found: {**found, "cls": found["cls"] / 0}, r"NaN or infinite cls tokens"),
        (lambda found: {**found, "cls": found["nothing"]}, r"its module fails on images \(1, 3, 56, 56\): KeyError"),
    ],
)
def test_wrong_answers_are_refused(change, message):
    Broken.change = staticmethod(change)
    with pytest.raises(TeacherError, match=message):
        load_teacher(resolve(f"{HERE}broken"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": 5}, r"its grid is 5; it must be one side .* that divides its 56 px"),
        ({"grid": (4, 7)}, r"its grid is \(4, 7\)"),
        ({"size": "56"}, r"its size is '56', and must be a number of px"),
        ({"version": 2}, r"its version is 2, and must be a text"),
        ({"licence": " "}, r"its licence is ' '"),
        ({"mean": (127, 127, 127)}, r"its mean \(127, 127, 127\) is not one of pixels in \[0, 1\]"),
        ({"std": (0, 1, 1)}, r"its std \(0, 1, 1\)"),
        ({"mean": 0.5}, r"its mean is 0.5, and must be three numbers"),
    ],
)
def test_wrong_attributes_are_refused(changes, message):
    CHANGES.update(changes)
    with pytest.raises(TeacherError, match=message):
        resolve(f"{HERE}with_attribute")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("random_weights", r"two calls of its factory gave modules with different tensors"),
        ("hidden_noise", r"two calls of its factory gave modules with different tensors"),
        ("Unregistered", r"two calls of its factory gave modules with different tokens"),
        ("Restless", r"two calls gave different patch tokens of the same images"),
        ("Sociable", r"an image's \w+ tokens depend on the other images of its batch"),
        ("fails", r"its factory fails: OSError: no such checkpoint"),
        ("leaves", r"its factory fails: SystemExit: 0"),
        ("empty", r"its factory fails: NotImplementedError: Cannot copy out of meta tensor"),
        ("no_module", r"its factory gives int, not a torch.nn.Module"),
        ("nothing", r"cannot import nothing of \S+: AttributeError"),
    ],
)
def test_modules_that_are_not_stable_are_refused(factory, message):
    with pytest.raises(TeacherError, match=message):
        load_teacher(resolve(f"{HERE}{factory}"))


def test_what_a_file_does_not_hold_must_be_the_same_each_time(tmp_path):
    save_file(Plain().state_dict(), tmp_path / "own.safetensors")
    with pytest.raises(TeacherError, match=r"two calls of its factory gave modules with different tokens"):
        load_teacher(resolve(f"{HERE}Unregistered"), str(tmp_path / "own.safetensors"))


class Reusing(Plain):
    """Writes each answer into the tensors of the last one, as CUDA graphs do."""

    def __init__(self) -> None:
        super().__init__()
        self.held = {}

    def forward(self, images):
        found = super().forward(images)
        return {
            kind: self.held.setdefault(values.shape, values.clone()).copy_(values) for kind, values in found.items()
        }


def test_an_answer_stays_when_the_module_writes_the_next_one_into_it():
    teacher = load_teacher(resolve(f"{HERE}Reusing"))
    first = teacher(views())
    kept = {kind: values.clone() for kind, values in first.items()}
    teacher(views().flip(0))
    torch.testing.assert_close(first, kept)


class Keeping(Plain):
    """Keeps more in its state than real numbers, wraps what it runs, and answers in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.ModuleDict({"stem": self.stem, "norm": self.norm})
        del self.stem, self.norm
        self.module.register_buffer("table", torch.arange(4, dtype=torch.uint8))

    def get_extra_state(self):
        return {"made": "here"}

    def set_extra_state(self, state) -> None:
        pass

    def forward(self, images):
        patch_BTD = self.module["norm"](self.module["stem"](images)).flatten(2).transpose(1, 2).half()
        return {"cls": patch_BTD.mean(dim=1), "patch": patch_BTD}


class Wrapping(Keeping):
    """The same without a state beside its tensors."""

    get_extra_state, set_extra_state = nn.Module.get_extra_state, nn.Module.set_extra_state


def test_states_of_every_kind_are_read(tmp_path):
    assert load_teacher(resolve(f"{HERE}Keeping"))(views())["cls"].dtype == torch.float32
    state = Wrapping().state_dict()
    assert all(name.startswith("module.") for name in state)
    save_file(state, tmp_path / "own.safetensors")
    save_file({f"module.{name}": values for name, values in state.items()}, tmp_path / "parallel.safetensors")
    for file in ("own.safetensors", "parallel.safetensors"):
        load_teacher(resolve(f"{HERE}Wrapping"), str(tmp_path / file))
    with pytest.raises(TeacherError, match=r"(?s)do not fit its model: .*_extra_state"):
        load_teacher(resolve(f"{HERE}Keeping"), str(tmp_path / "own.safetensors"))


def careless() -> nn.Module:
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    print("<All keys matched successfully>")
    return Plain().to_empty(device="cpu").float()


def test_what_a_factory_sets_for_the_whole_process_is_put_back(capsys):
    module = factory.made(f"{HERE}careless", None)
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (torch.float32, True)
    assert torch.get_default_device() == module.stem.weight.device == torch.device("cpu")
    assert torch._C._len_torch_function_stack() == 0  # no mode is left that wraps every call of torch
    assert capsys.readouterr() == ("", "<All keys matched successfully>\n")


def test_lacking_attributes_are_named():
    with pytest.raises(TeacherError, match=r"has no attribute name, version, licence, size, mean, std, grid"):
        resolve("py:torch.nn:Identity")
