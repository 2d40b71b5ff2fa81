"""docs/TEACHERS.md: every teacher known by name, and what was checked of it. `python -m benchmarks.teachers`.

Each preset is built at its true size on torch's meta device, without memory, and compared with what the catalog says of
it; then the page is written. What else the page claims is held by the tests that it names.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

import timm
import torch

from benchmarks.study.markdown import table
from unic_cache.teachers.catalog import PRESETS
from unic_cache.teachers.derive import derive, meta_model
from unic_cache.teachers.listing import rules_text
from unic_cache.teachers.presets.family import Preset
from unic_cache.teachers.spec import TeacherSpec
from unic_cache.teachers.token_rules import tokens

PAGE = Path("docs/TEACHERS.md")
DEPTH, WIDTH, HEADS = 2, 64, 4  # of the small models that the tests run
GIANT = 96  # channels of a small giant, whose gated MLP needs an even hidden width
STAGES = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}  # of a small ConvNeXt
WHOLE = ("efficientnet-lite0", "hed-edges")  # small enough as they are, and no transformers

OPENING = """# Teachers by name

Written by `python -m benchmarks.teachers`, which also checks the sizes; `tests/teachers/test_presets.py` holds the page
to the command. `unic-cache teachers [WORD]...` lists the same in a terminal, without building anything.

- `NAME@SIZE` sets the input size in px: `dinov2-b@518`.
- `NAME+cls=RULE,patch=RULE` sets the targets, and `none` leaves a kind out: `dinov2-b+cls=none`,
  `dinov2-b+patch=block:8` (patches of block 8 after the final norm), `dinov2-b+patch=raw-patch` (the last block's,
  un-normed). `unic_cache/teachers/token_rules.py` has the rules. A teacher with several CLS tokens has `cls`, `cls-1`,
  ...; any `cls` rule replaces them all: `c-radio-v3-b+cls=raw-cls:2` is DINOv2's alone.
- `--positions NAME=RULE` sets how positions reach another grid: `timm` (bicubic with antialiasing), `bicubic`
  (without), `bicubic-scale` (without, by the factor of DINO's and DINOv2's code).
- `timm:NAME` is any other timm model; one whose timm weights are in the tables gets the same targets. A CLIP that was
  trained with QuickGELU under a name without it is told, with the right name.
- `hf-hub:`, `local-dir:`, `open_clip:` and `py:` are [teachers outside timm](OWN_TEACHERS.md).
- `--weights NAME=FILE` takes any file of the model, under any prefix: in timm's layout; in one that timm converts
  (authors' files of CLIP, OpenCLIP, EVA, PE, DINOv2, DINOv3, AIMv2, C-RADIO, TIPS, SAM, ...); in Hugging Face's of
  DINOv2, DINOv3, I-JEPA, ViT, SigLIP and CLIP; in DINOv2's of chunked blocks, which UNIC has. Every tensor must have
  its place, and no shape but positions is resampled. Weights that look random or constant are told.

A student inherits the terms of its teachers' licences. `extract` says them as it begins.

## What was checked

No real weights were at hand but those of the Python packages; the notes say what only they can show.

- **Sizes**, of all: the true architecture on the meta device has these parameters, tokens and channels, and `timm:NAME`
  has the preset's targets where its weights are timm's. By this command, and in part by `make test-slow`.
- **Targets**, of each rule: a small model of the same class with random weights, loaded strictly from a file, against a
  plain forward of timm's modules.
- **From pixels to a student**: the same small models through `extract`, `inspect` and `distill`. Each rule in
  `make test`, every preset in `make test-slow`.
- **Hugging Face's layouts**: small models of transformers, saved there and loaded here, with equal outputs: DINOv2
  (with registers, with SwiGLU), DINOv3 (plain, gated, ConvNeXt), I-JEPA, ViT, SigLIP, CLIP. Where transformers is
  installed.

M: millions of parameters. GB: weights in float32. Tokens: of the patch kind. A kind without a rule is not given.
"""


def main() -> None:
    """Check every preset at its true size, then write the page."""
    for number, preset in enumerate(PRESETS.values()):
        check(preset)
        if preset.spec.source == "timm":
            check_derived(preset.spec)
        print(f"{number + 1} of {len(PRESETS)}: {preset.spec.name}", file=sys.stderr)
    PAGE.write_text(page())


def check(preset: Preset) -> None:
    """AssertionError unless timm's model has the parameters, tokens and channels that the preset says."""
    spec = preset.spec
    model = meta_model(spec.arch, dict(spec.arch_options), spec.headless)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert round(millions, 1) == preset.parameters, (spec.name, millions)
    with torch.inference_mode():
        found = tokens(model, torch.empty(1, 3, spec.input_size, spec.input_size, device="meta"), spec)
    assert {kind: values.shape[-1] for kind, values in found.items()} == dict(preset.channels), spec.name
    assert all(found[kind].shape[1] == preset.tokens for kind in spec.grid_rules), spec.name
    if spec.source == "timm":
        check_description(spec)


def check_description(spec: TeacherSpec) -> None:
    """AssertionError unless timm describes the same colours, and has weights of that name."""
    config = timm.get_pretrained_cfg(spec.arch)
    assert config.hf_hub_id, spec.name
    assert (config.mean, config.std) == (spec.mean, spec.std), spec.name
    assert config.fixed_input_size == ("img_size" in dict(spec.arch_options)) or spec.arch.startswith("tf_"), spec.name


def check_derived(spec: TeacherSpec) -> None:
    """AssertionError unless `timm:NAME` has the preset's rules, colours, stride and options."""
    derived = derive(spec.arch, spec.input_size)
    for field in ("summary_rules", "grid_rules", "mean", "std", "stride", "arch_options"):
        assert getattr(derived, field) == getattr(spec, field), (spec.name, field)


def small(spec: TeacherSpec) -> TeacherSpec:
    """A teacher of the same name, class and rules: two blocks, few channels, four tokens a side (two of 32 px)."""
    size = (4 if spec.stride < 32 else 2) * spec.stride
    options = dict(spec.resized(size).arch_options)
    if spec.arch.startswith("convnext"):
        options |= STAGES
    elif spec.name not in WHOLE:
        rules = (*spec.summary_rules.values(), *spec.grid_rules.values())
        blocks = [int(rule.removeprefix("block:")) for rule in rules if rule.startswith("block:")]
        width = GIANT if "giant" in spec.arch else WIDTH
        options |= {"depth": max([DEPTH - 1, *blocks]) + 1, "embed_dim": width, "num_heads": HEADS}
    return dataclasses.replace(spec, input_size=size, arch_options=tuple(options.items()), source="file")


def page() -> str:
    """The page's text, from the catalog alone."""
    parts = [OPENING]
    for family, ones in itertools.groupby(PRESETS.values(), lambda one: one.family):
        parts.append(_section(family, list(ones)))
    return "\n".join(parts)


def _section(family: str, ones: list[Preset]) -> str:
    shared: dict[str, list[str]] = {}
    for spec in (one.spec for one in ones):
        text = f"{spec.licence}; mean/std {_numbers(spec.mean)} / {_numbers(spec.std)}"
        shared.setdefault(text, []).append(spec.name)
    facts = [f"{text} ({', '.join(names)})." if len(shared) > 1 else f"{text}." for text, names in shared.items()]
    notes = sorted({one.unchecked for one in ones if one.unchecked})
    rows = [
        (
            f"`{one.spec.name}`",
            f"`{one.spec.arch}`",
            f"{one.parameters:,.1f}",
            f"{one.parameters * 4 / 1000:.2f}",
            f"{one.spec.input_size} / {one.spec.stride}",
            f"{one.tokens:,}",
            " + ".join(f"{channels:,}" for channels in one.channels.values()),
            rules_text(one),
            one.spec.position_rule,
        )
        for one in ones
    ]
    head = ("name", "timm's model", "M", "GB", "px / stride", "tokens", "channels", "targets", "positions")
    lines = [f"## {family}", "", "\n".join(facts), "", table(head, rows), ""]
    lines += [f"Not checked on the real weights: {note}.\n" for note in notes]
    return "\n".join(lines)


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


if __name__ == "__main__":
    main()
