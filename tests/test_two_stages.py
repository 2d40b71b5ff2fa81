"""The second stages that docs/METHOD.md shows, run as they are written, on tiny stand-ins for teachers and students."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

import cli
from pipelines import distill, extract
from tests.conftest import CNN, VIT, log_of, make_shards
from unic_cache.student.export import load_encoder

ROOT = Path(__file__).parent.parent
STAND_INS = (VIT, CNN)  # for the first and the second teacher that a command names
TINY = {224: 32, 336: 48, 448: 64}  # pixels


def shown(recipe: str) -> list[list[str]]:
    """The words of the commands on a recipe's caches and runs."""
    section = (ROOT / "docs/METHOD.md").read_text().partition("## Two stages\n")[2].partition("\n## ")[0]
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL)).splitlines()
    return [shlex.split(line) for line in lines if recipe in line]


@pytest.fixture
def configs(monkeypatch):
    """A function that gives the config of a command's words."""
    made = []
    monkeypatch.setattr("pipelines.command.preflight.look", made.append)

    def config_of(words):
        with pytest.raises(ZeroDivisionError):
            cli.main(words[1:], standalone_mode=False)
        return made.pop()

    for stage in (extract, distill):
        monkeypatch.setattr(stage, "run", lambda config: 1 / 0)
    return config_of


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "size"), [("unic-l", 48), ("dune", 64)])
def test_the_commands_of_two_stages_run(recipe, size, configs, tmp_path, weights, capsys, monkeypatch):
    tars = make_shards(tmp_path / "tars", (9,)).pattern
    commands = [configs(words) for words in shown(recipe)]
    monkeypatch.undo()
    assert [config.stage for config in commands] == ["extract", "distill"] * 2
    for config in commands:
        capsys.readouterr()
        here = {"cache": str(tmp_path / config.cache), "shards": tars, "threads": 1}
        tiny = TINY.get(config.size if config.stage == "extract" else config.img_size, 32)
        if config.stage == "extract":
            names = [f"{one.partition('@')[0]}@{tiny}" for one in STAND_INS[: len(config.teachers)]]
            files = tuple((name, str(weights[one])) for name, one in zip(names, STAND_INS, strict=False))
            extract.run(
                dataclasses.replace(
                    config,
                    teachers=tuple(names),
                    weights=files,
                    size=tiny,
                    views=1,
                    calibration_images=10,
                    device="cpu",
                    **here,
                )
            )
            continue
        first = None if config.from_run is None else str(tmp_path / config.from_run)
        distill.run(
            dataclasses.replace(
                config, student="test_vit", img_size=tiny, patch_size=16, epochs=2.0, batch_size=4, precision="no",
                lr=config.lr or 1e-3, tracker="none", out=str(tmp_path / config.out), from_run=first, log_every=1,
                **here,
            )
        )  # fmt: skip
    said = capsys.readouterr().err.replace("\n", " ")
    assert "its encoder is taken over" in said
    for one in STAND_INS[: len(commands[0].teachers)]:
        name = one.partition("@")[0]
        assert f"{name}@{size}: its projectors are taken over from {one if size == 48 else f'{name}@48'}" in said
    _, spec, provenance = load_encoder(tmp_path / commands[-1].out)
    assert (spec.img_size, provenance["from"]["steps"]) == (size, 4)
    first_loss, second_loss = (log_of(tmp_path / commands[at].out)[0]["loss"] for at in (1, 3))
    assert second_loss < first_loss
