"""The model card, README.md of an export: what the student is, how to load it, whose licences bind it, its worth.

Its first lines are the metadata that the Hugging Face hub reads.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.exporting.loading import SNIPPETS
from pipelines.exporting.source import Source
from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError
from unic_cache.evaluate.results import NETWORK, STUDENT, Evaluation
from unic_cache.evaluate.tables import value_text
from unic_cache.teachers.weights import state_sha256

HUB_LICENCES = {  # of SPDX, as the hub writes them
    "apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-sa-4.0", "mit",
}  # fmt: skip
RECIPE: dict[str, Callable[[Any], str]] = {
    "batch_size": lambda value: f"{value} images a step",
    "lr": lambda value: f"peak learning rate {value:g}",
    "weight_decay": lambda value: f"weight decay {value:g}",
    "drop_path": lambda value: f"drop path {value:g}",
    "drop_teacher": lambda value: f"teachers dropped with probability {value:g}",
    "balancing": lambda value: f"balancing {value}",
    "loss": lambda value: f"loss {value}",
    "projector": lambda value: f"projectors {value}",
    "standardize": lambda value: f"targets standardized: {value}",
    "tokens": lambda value: f"{value} patch tokens of each view",
    "kinds": lambda value: f"token kinds {', '.join(value)}",
    "ema": lambda value: f"moving average of the weights, decay {value:g}",
    "clip_grad": lambda value: f"gradient clipped to {value:g}",
    "precision": lambda value: f"mixed precision: {value}",
    "seed": lambda value: f"seed {value}",
}  # settings in the card, and how


@dataclass(frozen=True)
class Card:
    """What the card is made from."""

    source: Source
    form: str  # --format
    where: str  # the folder's name, or the hub's
    results: Evaluation | None
    checked: bool  # whether an ONNX file was compared with torch

    def to_bytes(self) -> bytes:
        """The card. ConfigError if the results do not say which student is meant."""
        parts = [
            "\n".join(self._front()),
            f"# {self.where.rpartition('/')[2]}",
            "\n".join(self._about()),
            "## How to load it",
            SNIPPETS[self.form](self.source.spec, self.where, self.checked),
            "## Teachers and licences",
            "\n".join(self._teachers()),
            "## How it was made",
            "\n".join(self._recipe()),
        ]
        if self.results is not None:
            parts += ["## What it is worth", "\n".join(table(self.results, self.source))]
        parts += [
            "## Method",
            "UNIC: Universal Classification Models via Multi-teacher Distillation, arXiv 2408.05088.",
        ]
        return ("\n\n".join(parts) + "\n").encode()

    def _front(self) -> list[str]:
        found = {licence.lower() for licence in self.source.licences.values()}
        unknown = any(licence is None for _, licence in starts(self.source.provenance))
        lines = ["license: other", "license_name: terms-of-all-its-teachers"]
        if len(found) == 1 and found <= HUB_LICENCES and not unknown:
            lines = [f"license: {found.pop()}"]
        library = {"onnx": "onnx", "hf": "transformers"}.get(self.form, "timm")
        tags = ["unic-cache", "knowledge-distillation", "image-feature-extraction"]
        pipeline = ["pipeline_tag: image-feature-extraction", "tags:", *(f"- {tag}" for tag in tags)]
        return ["---", *lines, f"library_name: {library}", *pipeline, "---"]

    def _about(self) -> Iterator[str]:
        spec, source = self.source.spec, self.source
        teachers = len(teachers_of(source.provenance))
        yield (
            f"An image encoder, {spec.name} at {spec.img_size} px (patches of {spec.patch_size} px), distilled by "
            f"unic-cache from {teachers or 'unknown'} teacher{'s' if teachers != 1 else ''}. It has no classifier: it "
            "gives a feature of the image and patch tokens."
        )
        if source.unfinished:
            yield f"\n**Its training was not finished: {source.steps:,} of {source.total:,} steps.**"

    def _teachers(self) -> Iterator[str]:
        yield "The student inherits the terms of all of these licences; the narrowest decide what it may be used for."
        yield ""
        yield "| teacher | licence | published | sha256 of the weights |"
        yield "|---|---|---|---|"
        for name, made in teachers_of(self.source.provenance).items():
            sha256 = str(made.get("weights_sha256") or "")[:16]
            licence = self.source.licences[name]
            yield f"| {cell(name)} | {cell(licence)} | {cell(made.get('published') or '')} | {sha256} |"
        for start, known in starts(self.source.provenance):
            theirs = "whose licence" if known is None else f"whose licence, {known},"
            yield f"\nIts encoder began with the weights {start}, {theirs} binds it too."

    def _recipe(self) -> Iterator[str]:
        source, provenance = self.source, self.source.provenance
        settings, views = source.settings, provenance.get("views") or {}
        if source.steps is not None:
            yield f"- {source.steps:,} steps" + (f" of {source.total:,}" if source.unfinished else "")
        if provenance.get("images"):
            count = len(views.get("numbers", ()))
            yield (
                f"- {provenance['images']:,} images, {count} view{'s' if count != 1 else ''} each: recipe "
                f"{views.get('recipe')}, {views.get('size')} px"
            )
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (source.spec.mean, source.spec.std))
        yield f"- pixels: mean {mean}, std {std}"
        for name, words in RECIPE.items():
            value = settings.get(name)
            if value is None and name == "lr" and "batch_size" in settings:
                value = DistillConfig(batch_size=settings["batch_size"], min_lr=0.0).peak_lr()
            if value not in (None, (), []) and not (name == "drop_teacher" and settings.get("balancing") == "none"):
                yield f"- {words(value)}"
        if provenance.get("from"):
            yield f"- second stage: it began as a run of {provenance['from'].get('steps', '?')} steps"
        versions = provenance.get("versions") or {}
        if versions:
            yield "- made with " + ", ".join(f"{name} {release}" for name, release in versions.items())


def table(results: Evaluation, source: Source) -> Iterator[str]:
    """The student among its teachers on every task, as Markdown. ConfigError if the results are not of this student."""
    kinds = {one: score.kind for task in results.tasks.values() for one, score in task.scores.items()}
    own = student_in(results, [one for one, kind in kinds.items() if kind == STUDENT], source)
    shown = [own, *(one for one, kind in kinds.items() if kind not in {STUDENT, NETWORK})]
    units = [f"{task} ({result.metric}{', %' if result.unit == '%' else ''})" for task, result in results.tasks.items()]
    yield "Measured by `unic-cache evaluate`; intervals of 95 % over the test images."
    yield ""
    if results.trained_on:
        yield f"Of the test images, up to {results.trained_on:,} were seen in training, without labels."
        yield ""
    if results.unknown:  # in full it names paths
        yield "Of some encoder it is unknown whether it was trained on test images."
        yield ""
    yield f"| encoder | {' | '.join(map(cell, units))} |"
    yield "|---|" + "---|" * len(units)
    for one in shown:
        values = [
            value_text(task.scores[one].estimate, task.unit) if one in task.scores else ""
            for task in results.tasks.values()
        ]
        yield f"| {cell('this student' if one == own else one)} | {' | '.join(values)} |"


def student_in(results: Evaluation, students: Sequence[str], source: Source) -> str:
    """The student's name in the results: by its weights, or in a file that lacks them, by name if there are several.

    ConfigError if it is not there.
    """
    listed = ", ".join(students) or "none"
    if results.weights:
        sha256 = state_sha256(source.encoder.state_dict())
        own = next((one for one in students if results.weights.get(one) == sha256), None)
        if own is None:
            raise ConfigError(
                f"--results {results.label}: it has the students {listed}, and none has the weights of {source.path}; "
                "run `unic-cache evaluate --out FILE` with this one"
            )
        return own
    own = students[0] if len(students) == 1 else source.name
    if own not in students:
        raise ConfigError(
            f"--results {results.label}: it has the students {listed}, and none is called {source.name}; evaluate this "
            "one alone, or under its folder's name"
        )
    return own


def teachers_of(provenance: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """{teacher: what made it}, also of the runs that it started from."""
    if provenance is None:
        return {}
    own = provenance.get("teachers")
    return {**teachers_of(provenance.get("from")), **(own if isinstance(own, Mapping) else {})}


def starts(provenance: Mapping[str, Any] | None) -> list[tuple[str, str | None]]:
    """(--init, its licence if that is known) of the run, and of those that it started from."""
    if provenance is None:
        return []
    settings, known = provenance.get("config"), provenance.get("init") or {}
    init = settings.get("init") if isinstance(settings, Mapping) else None
    return [*starts(provenance.get("from")), *([(str(init), known.get("licence"))] if init else [])]


def cell(text: object) -> str:
    """Text in a cell of a Markdown table."""
    return " ".join(str(text).replace("|", "\\|").split())
