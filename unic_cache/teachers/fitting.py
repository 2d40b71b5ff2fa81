"""The tensors of a weights file for a teacher's model: under its names, in its shapes, resampled only on request.

Positions belong to a grid. If the file's grid differs from the input's, they are resampled by the spec's rule when the
user gave the input size (NAME@SIZE) or the rule; otherwise the file is refused. Nothing else is ever resampled: no
patch kernels, no tables of relative positions.
"""

import contextlib
import functools
import io
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm

from unic_cache.errors import TeacherError
from unic_cache.teachers import positions
from unic_cache.teachers.derive import meta_model
from unic_cache.teachers.spec import Option, TeacherSpec
from unic_cache.teachers.weights import check_fit, content_of, fits, named_state
from unic_cache.weights.conversion import Watch, lost_bias
from unic_cache.weights.state_dicts import Found, State, mappings, without_shared_prefix

POSITIONS = "pos_embed"
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"num_classes": 0})  # files with a classifier, and without

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A weights file, and what may be done with it."""

    spec: TeacherSpec
    path: Path
    published: bool  # timm's or a package's file for the teacher, not the user's
    resample: bool  # whether the user gave a rule to resample positions by


def fitted(source: Source, model: Any) -> tuple[State, State]:
    """A file's (tensors at their own grid, tensors to load into `model`). TeacherError if they do not fit."""
    spec, path = source.spec, source.path
    options = tuple((key, value) for key, value in spec.arch_options if key != "img_size")
    own, here = _own_shapes(spec.arch, options, spec.headless), _shapes(model)
    config = timm.get_pretrained_cfg(spec.arch)
    names = config.classifier if config else None
    classifiers = (names,) if isinstance(names, str) else tuple(names or ())
    content = content_of(path, spec.key_layout, spec.name)
    found = named_state(content, path, spec.key_layout, own, classifiers, spec.name)
    pair = _placed(source, found.tensors, own, here, model)
    if pair is None and spec.key_layout == "timm" and (source.published or found.tensors.keys() != own.keys()):
        converted = _through_timm(source, content, found)
        pair = None if converted is None else _placed(source, converted, own, here, model)
    if pair is None:
        check_fit(found.tensors, own, spec.name, str(path), found.meant)
        raise TeacherError(
            f"the weights of teacher {spec.name} from {path} do not fit its model at {spec.input_size} px"
        )
    check_fit(pair[1], here, spec.name, f"{path} at {spec.input_size} px")
    return pair


def _placed(source: Source, state: State, own: Any, here: Any, model: Any) -> tuple[State, State] | None:
    """A state, and the same at the model's grid; None if more than its positions do not fit."""
    if fits(state, here):
        return state, state
    spec = source.spec
    if state.keys() != own.keys() or not fits(_but_positions(state), _but_positions(own)):
        return None
    if POSITIONS not in state or state[POSITIONS].ndim != 3:
        return (state, state) if fits(state, own) else None
    side = spec.input_size // spec.stride
    prefix = max(0, int(model.pos_embed.shape[1]) - side * side)  # positions before the grid's
    theirs = math.isqrt(max(0, state[POSITIONS].shape[1] - prefix))
    if theirs * theirs != state[POSITIONS].shape[1] - prefix or state[POSITIONS].shape[2] != own[POSITIONS][2]:
        return None
    if not (fits(state, own) or source.resample or "@" in spec.name):
        native, (base, plus, rules) = theirs * spec.stride, spec.name.partition("+")
        raise TeacherError(
            f"teacher {spec.name}: {POSITIONS} of {source.path} is {tuple(state[POSITIONS].shape)}, positions of "
            f"{theirs} x {theirs} patches ({native} px), and the model's is {here[POSITIONS]}, of {side} x {side} "
            f"({spec.input_size} px). Say --teacher {base}@{native}{plus}{rules} to run it at the size of the weights, "
            f"or --positions {spec.name}={spec.position_rule} to have them resampled"
        )
    if not fits(state, own):
        log.warning(
            "teacher %s: positions of %s are resampled from %d x %d to %d x %d by rule %s",
            *(spec.name, source.path, theirs, theirs, side, side, spec.position_rule),
        )
    moved = positions.resample(state[POSITIONS], (side, side), prefix, spec.position_rule)
    return state, {**state, POSITIONS: moved}


def _but_positions(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != POSITIONS}


def _through_timm(source: Source, content: Any, found: Found) -> State | None:
    """Third-party layouts by timm's own converter for this model; None if timm cannot convert them either.

    TeacherError if it would resample without a request.
    """
    spec = source.spec
    for raw in _raw_states(content, found):
        for options in OPTIONS:
            state, watch = _converted(spec, raw, options)
            if state is None:
                continue
            if lost := lost_bias(raw, state):
                raise TeacherError(
                    f"teacher {spec.name}: {source.path} has a bias {lost}, and {spec.arch} no place for it; take "
                    "timm's model of the same name with `_qkvb`, as in timm:vit_base_patch16_dinov3_qkvb"
                )
            if not watch.resampled:
                return state
            if source.published:
                log.warning("teacher %s: timm's converter resampled its published weights to its size", spec.name)
                return state
            state = None if watch.kernels else _at_own_grid(spec, raw, options, watch.resampled[0])
            if state is not None:
                return state
            raise TeacherError(
                f"teacher {spec.name}: to fit, timm would have resampled "
                f"{'the patch kernels' if watch.kernels else 'a table of positions'} of {source.path}, of shape "
                f"{watch.resampled[0]}; choose the timm model, or the size (NAME@SIZE), that the weights are made for"
            )
    return None


def _raw_states(content: Any, found: Found) -> Iterator[State]:
    """What a converter may know: the tensors found, and the whole mapping that holds them."""
    if found.meant:
        yield found.tensors
    inside = [(where, tensors) for where, tensors in mappings(content) if found.taken.startswith(where)]
    for _, tensors in inside[-1:]:
        yield tensors
        stripped = without_shared_prefix(tensors)
        if stripped.keys() != tensors.keys():
            yield stripped


def _converted(spec: TeacherSpec, raw: State, options: dict[str, Any]) -> tuple[State | None, Watch]:
    """The tensors of a model filled by timm's converter, without classifier; None if it cannot fill all."""
    watch = Watch()
    options = {**{key: value for key, value in spec.arch_options if key != "img_size"}, **options}
    overlay = {"state_dict": dict(raw), **{key: value for key, value in options.items() if key == "num_classes"}}
    try:
        with watch, contextlib.redirect_stdout(io.StringIO()):  # some converters print
            model = timm.create_model(spec.arch, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        random = watch.left_at_random(model)
        model.reset_classifier(0)
    except Exception:  # each converter fails in its own way on unknown keys
        return None, watch
    state = dict(model.state_dict())
    return (None if any(name in state for name in random) else state), watch


def _at_own_grid(spec: TeacherSpec, raw: State, options: dict[str, Any], shape: tuple[int, ...]) -> State | None:
    """The converted tensors in a model whose input size fits positions of `shape` (..., h, w)."""
    if "img_size" not in dict(spec.arch_options) or len(shape) != 4 or shape[-1] != shape[-2]:
        return None
    state, watch = _converted(spec, raw, {**options, "img_size": shape[-1] * spec.stride})
    return None if watch.resampled else state


@functools.cache  # building a model takes half a second
def _own_shapes(arch: str, options: tuple[tuple[str, Option], ...], headless: bool) -> dict[str, tuple[int, ...]]:
    return _shapes(meta_model(arch, dict(options), headless))


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
