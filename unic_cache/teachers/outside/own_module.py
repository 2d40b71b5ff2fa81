"""A module of your own as a teacher: `py:package.module:factory`. docs/OWN_TEACHERS.md has a whole example.

The factory is called without arguments (with `size=SIZE` for a name with @SIZE) and gives an `OwnTeacher`: any callable
nn.Module with a few attributes. What it does is checked before anything is stored: shapes, values, that two calls and
two factories agree, and that an image's tokens do not depend on its batch.

Letters: B images, T grid tokens, D channels.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from unic_cache.errors import TeacherError
from unic_cache.teachers.outside.colours import colours
from unic_cache.teachers.outside.factory import made
from unic_cache.teachers.outside.files import in_parallel, read_state
from unic_cache.teachers.outside.loaded import Loaded, Network, loaded, running, tensors_of
from unic_cache.teachers.outside.names import Outside
from unic_cache.teachers.spec import OWN, PY, TeacherSpec
from unic_cache.teachers.token_rules import Tokens
from unic_cache.teachers.weights import check_fit, state_sha256
from unic_cache.token_kinds import CLS, PATCH, Grid
from unic_cache.weights.state_dicts import State

IMAGES = 2  # of a check
APART = 1e-3  # largest difference between two calls, as a share of the largest value: kernels may sum in other orders
BATCHED = 1e-2  # the same, between an image alone and in a batch
TEXTS = ("name", "version", "licence")


class OwnTeacher(Protocol):
    """What a factory gives: an nn.Module with these attributes.

    `version` must change whenever the tokens change for a reason that its weights do not show, such as the code; it is
    kept in the cache, and another version is refused there.
    """

    name: str  # for people
    version: str
    licence: str
    size: int  # px, height and width of its images
    grid: int | Grid | None  # of the patch tokens, which are row by row; None without any
    mean: Sequence[float]  # of RGB in [0, 1]; images come normalised by it
    std: Sequence[float]

    def __call__(self, images: torch.Tensor, /) -> Mapping[str, torch.Tensor]:
        """Float images (B, 3, size, size) to {"cls": (B, D), "patch": (B, T, D)}, or one of them."""
        ...


class Described(NamedTuple):
    """A module's spec, the digest of all its tensors, and what it gives for noise."""

    spec: TeacherSpec
    tensors: str
    answer: Tokens


def spec_of_module(outside: Outside, size: int | None) -> TeacherSpec:
    """The spec of a py: name. TeacherError if the factory or its module is not as the protocol says."""
    return _described(outside.name, size).spec


def load_module(spec: TeacherSpec, weights: Path | None) -> Loaded:
    """The module, made anew, with its own weights or those of a file. TeacherError if it is not the same again."""
    name, _, at = spec.name.partition("+")[0].partition("@")
    size = int(at) if at else None
    state = None if weights is None else read_state(weights, name)
    module, before = _filled(name, size, state, weights), _described(name, size)
    same = weights is not None or _digest(module) == before.tensors
    network = OwnNetwork(module, spec)
    network.eval().requires_grad_(False)
    check_answers(network)
    expected = before.answer if weights is None else _answer(name, _filled(name, size, state, weights), spec.input_size)
    answer = _answer(name, module, spec.input_size)
    if not same or any(_apart(answer[kind], values) > APART for kind, values in expected.items()):
        raise TeacherError(
            f"teacher {name}: two calls of its factory gave modules with different {'tokens' if same else 'tensors'}; "
            "load its weights from a file in the factory, seed what is random, or pass a file with --weights"
        )
    given = tensors_of(module) if state is None else in_parallel(state, tensors_of(module))
    found = loaded(network, given, weights, f"the weights of teacher {name} from {weights or 'its factory'}")
    # tensors outside the state dict decide the output too
    return found if weights is not None else found._replace(weights_sha256=before.tensors)


def _filled(name: str, size: int | None, state: State | None, weights: Path | None) -> nn.Module:
    """What the factory gives, with the tensors of `state` if there is one. TeacherError if they do not fit."""
    module = made(name, size)
    if state is None:
        return module
    own = tensors_of(module)
    given = in_parallel(state, own)
    check_fit(given, {key: tuple(tensor.shape) for key, tensor in own.items()}, name, str(weights))
    try:
        module.load_state_dict(given, strict=True)
    except RuntimeError as error:  # a module may keep more there than tensors
        raise TeacherError(f"the weights of teacher {name} from {weights} do not fit its model: {error}") from error
    return module


class OwnNetwork(Network):
    """A module's answers as the kinds of a spec, each with the shape that it must have."""

    def __init__(self, module: nn.Module, spec: TeacherSpec) -> None:
        super().__init__()
        self.module = module
        self.spec = spec

    def forward(self, images_BCHW: torch.Tensor) -> Tokens:
        """Every kind of the spec. TeacherError for other keys, shapes or types."""
        with running(self.spec):
            answer = self.module(images_BCHW)
        side = self.spec.input_size // self.spec.stride
        found = self._checked(answer, len(images_BCHW), side * side)
        grids = {PATCH: found[PATCH]} if self.spec.grid_rules else {}
        summaries = {
            kind: found[CLS] if rule == OWN else found[PATCH].mean(dim=1)
            for kind, rule in self.spec.summary_rules.items()
        }
        return summaries | grids

    def _checked(self, answer: Any, images: int, cells: int) -> Mapping[str, torch.Tensor]:
        name = self.spec.name
        if not isinstance(answer, Mapping) or not all(isinstance(value, torch.Tensor) for value in answer.values()):
            raise TeacherError(
                f"teacher {name}: its module gives {type(answer).__name__}, not {{'cls', 'patch'}} tensors"
            )
        needed = {PATCH for rule in self.spec.summary_rules.values() if rule != OWN} | set(self.spec.grid_rules)
        needed |= {CLS for rule in self.spec.summary_rules.values() if rule == OWN}
        if not needed <= answer.keys():
            raise TeacherError(
                f"teacher {name}: its module gives {', '.join(map(repr, answer)) or 'nothing'}, without "
                f"{' and '.join(map(repr, sorted(needed - answer.keys())))}; leave a kind out with +cls=none or "
                "+patch=none"
            )
        for kind in sorted(needed):
            tensor, wanted = answer[kind], (images, "D") if kind == CLS else (images, cells, "D")
            fits = tensor.ndim == len(wanted) and tuple(tensor.shape[:-1]) == wanted[:-1] and tensor.shape[-1] > 0
            if not fits or not tensor.is_floating_point():
                raise TeacherError(
                    f"teacher {name}: its {kind} for {images} images is {tensor.dtype} of shape "
                    f"{tuple(tensor.shape)}, and must be of real numbers and shape ({', '.join(map(str, wanted))})"
                )
        # copies: a module may write its next answer into the same tensors
        return {kind: answer[kind].to(torch.float32, copy=True) for kind in needed}


def check_answers(network: OwnNetwork) -> None:
    """TeacherError if tokens are not finite, differ between two calls, or depend on the other images of a batch."""
    spec = network.spec
    images_BCHW = _noise(IMAGES, spec.input_size)
    with torch.inference_mode():
        first, again, alone = (
            network(images_BCHW.clone()),
            network(images_BCHW.clone()),
            network(images_BCHW[:1].clone()),
        )
    for kind, values in first.items():
        if not values.isfinite().all():
            raise TeacherError(f"teacher {spec.name}: NaN or infinite {kind} tokens of noise images; check its weights")
        if _apart(values, again[kind]) > APART:
            raise TeacherError(
                f"teacher {spec.name}: two calls gave different {kind} tokens of the same images; after eval() it must "
                "draw nothing at random and keep no state"
            )
        if _apart(values[:1], alone[kind]) > BATCHED:
            raise TeacherError(
                f"teacher {spec.name}: an image's {kind} tokens depend on the other images of its batch; is a norm "
                "over the batch still training?"
            )


@functools.cache  # a spec is asked for many times, and a factory may take long
def _described(name: str, size: int | None) -> Described:
    module: Any = made(name, size)
    tensors = _digest(module)  # before it runs
    wanted = [*TEXTS, "size", "mean", "std", "grid"]
    lacking = [key for key in wanted if not hasattr(module, key)]
    if lacking:
        raise TeacherError(
            f"teacher {name}: its module has no attribute {', '.join(lacking)}; see docs/OWN_TEACHERS.md"
        )
    for key in TEXTS:
        if not isinstance(getattr(module, key), str) or not getattr(module, key).strip():
            raise TeacherError(f"teacher {name}: its {key} is {getattr(module, key)!r}, and must be a text")
    if isinstance(module.size, bool) or not isinstance(module.size, int) or module.size < 1:
        raise TeacherError(f"teacher {name}: its size is {module.size!r}, and must be a number of px")
    if size is not None and module.size != size:
        raise TeacherError(f"teacher {name}: asked for {size} px, its factory gave a module of {module.size} px")
    answer = _answer(name, module, module.size)
    if PATCH in answer and module.grid is None:
        raise TeacherError(f"teacher {name}: its module gives patch tokens, but its grid is None; say their grid")
    mean, std = colours(module.mean, module.std, f"teacher {name}: its")
    spec = TeacherSpec(
        name=name if size is None else f"{name}@{size}",
        about=f"{module.name}, version {module.version}",
        arch=f"{PY}:{name.removeprefix('py:')}",
        arch_options=(),
        input_size=module.size,
        stride=_stride(name, module.size, module.grid),
        mean=mean,
        std=std,
        summary_rules={CLS: OWN} if CLS in answer else {},
        grid_rules={} if module.grid is None else {PATCH: OWN},
        key_layout=PY,
        position_rule=OWN,
        source=name,
        published=f"its own module, {name.removeprefix('py:')}",
        licence=module.licence,
        version=module.version,
    )
    return Described(spec, tensors, answer)


def _answer(name: str, module: Any, size: int) -> Tokens:
    """What a module gives for an image of noise. TeacherError if that is anything but cls and patch tokens."""
    with torch.inference_mode():
        try:
            answer = module.eval()(_noise(1, size))
        except Exception as error:  # whatever a module of someone's own raises
            raise TeacherError(
                f"teacher {name}: its module fails on images (1, 3, {size}, {size}): {type(error).__name__}: {error}"
            ) from error
    given = answer if isinstance(answer, Mapping) else {}
    if not given or set(given) - {CLS, PATCH} or not all(isinstance(x, torch.Tensor) for x in given.values()):
        shown = ", ".join(f"{key!r}" for key in given) or type(answer).__name__
        raise TeacherError(
            f"teacher {name}: its module gives {shown}; it must give {CLS!r}, {PATCH!r} or both, as tensors"
        )
    return {kind: values.float().clone() for kind, values in given.items()}


def _noise(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def _apart(left: torch.Tensor, right: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((left - right).abs().max()) / max(float(left.abs().max()), 1e-30)


def _digest(module: nn.Module) -> str:
    """sha256 of every tensor: parameters and buffers, persistent or not."""
    return state_sha256({**dict(module.named_parameters()), **dict(module.named_buffers()), **tensors_of(module)})


def _stride(name: str, size: int, grid: Any) -> int:
    """px from one patch token to the next; of a module without patches, its size."""
    if grid is None:
        return size
    height, width = (grid, grid) if isinstance(grid, int) else tuple(grid) if _is_pair(grid) else (0, 0)
    if height != width or height < 1 or size % height:
        raise TeacherError(
            f"teacher {name}: its grid is {grid!r}; it must be one side (or two equal ones) that divides its {size} px"
        )
    return size // int(height)


def _is_pair(grid: Any) -> bool:
    return isinstance(grid, Sequence) and len(grid) == 2 and all(isinstance(side, int) for side in grid)
