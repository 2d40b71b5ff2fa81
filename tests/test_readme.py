"""The documents match the code: commands parse, files are listed, snippets run."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch

import cli
import unic_cache
from pipelines import extract
from tests.conftest import VIT

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    """Every `unic-cache ...` line in a document's code blocks and in the commands' own examples."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```(?:sh|console|)\n(.*?)```", document.read_text(), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.removeprefix("$ ") for line in lines if re.match(r"(\$ )?unic-cache [a-z]", line)]
    for command in cli.main.commands.values():
        found += [
            line.strip() for line in command.examples.strip().splitlines() if line.strip().startswith("unic-cache")
        ]
    return found


@pytest.mark.parametrize("line", commands())
def test_every_command_shown_parses(line):
    words = shlex.split(line.partition(" #")[0].partition(" | ")[0])[1:]
    command = cli.main.commands[words[0]]
    with click.Context(command) as context:
        command.parse_args(context, list(words[1:]))


def modules() -> list[Path]:
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in tracked.splitlines() if name.startswith(("unic_cache/", "pipelines/"))]


def test_the_layout_lists_every_module():
    text = (ROOT / "docs/LAYOUT.md").read_text()
    for path in modules():
        assert path.name == "__init__.py" or path.name in text, path


def test_the_readme_lists_every_room():
    text = (ROOT / "README.md").read_text()
    for path in modules():
        assert path.name != "__init__.py" or f"{path.parent.name}/" in text, path.parent


def test_the_files_that_the_layout_names_are_there():
    for name in re.findall(r"`((?:unic_cache|pipelines)/[\w/.]+)`", (ROOT / "docs/LAYOUT.md").read_text()):
        assert (ROOT / name).exists(), name


def test_the_two_commands_are_there():
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text
    makefile = (ROOT / "Makefile").read_text()
    assert {"setup", "demo", "test", "lint"} <= set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))


def test_every_command_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    assert all(re.search(rf"`{name}[` ]", text) for name in cli.main.commands)


def test_links_between_documents_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize(
    ("codec", "coder", "tokens", "size", "cls_quality"),
    [
        *[(codec, None, None, 32, None) for codec in ("f16", "int8", "int4")],
        ("int4", None, 3, 32, None),
        *[("klt", "zstd", None, 32, None), ("klt", "zstd", 3, 32, 0.97), ("klt", "pcodec", None, 32, 0.99)],
        ("klt", "pcodec", 4, 64, None),  # a lattice of 2 x 2 in 4 x 4
    ],
)
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
def test_the_numpy_lines_of_the_format_give_the_readers_values(
    tmp_path, settings, weights, codec, coder, tokens, size, cls_quality
):
    cache_folder, name = tmp_path / "cache", f"timm:test_vit@{size}"
    chosen = {"teachers": (name,), "weights": ((name, str(weights[VIT])),)}
    kept = {"codec": codec, "coder": coder, "tokens": tokens, "cls_quality": cls_quality}
    extract.run(settings(cache_folder, views=1, **kept, **chosen))
    cache = unic_cache.open_cache(cache_folder)
    begin, plain, klt, end = re.findall(r"```python\n(.*?)```", (ROOT / "docs/FORMAT.md").read_text(), re.DOTALL)
    code = begin + (klt if codec == "klt" else plain) + end
    teacher = cache.teachers[name]
    scope = {"cache": cache_folder, "teacher": teacher.member.folder, "view": "unic-32-0-000"}
    exec(code, scope)
    record = teacher.record(cache.unit(0, 0, "unic-32-0-000"))
    features = teacher.features(record, range(32))
    own = teacher.calibration.destandardize(features)
    for kind in ("cls", "patch"):
        assert np.allclose(scope[kind], features[kind].numpy(), rtol=1e-5, atol=1e-5)
        assert torch.allclose(torch.from_numpy(scope["own"][kind]).float(), own[kind], atol=1e-4)


def test_the_python_lines_of_the_readme_give_batches(cache_folder, shards, tmp_path, monkeypatch):
    (tmp_path / "shards").symlink_to(shards.folder)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    own = {'"cache"': repr(str(cache_folder)), '"dino"': repr(VIT), '256, device="cuda"': "16"}
    for shown, ours in own.items():
        assert shown in code
        code = code.replace(shown, ours)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert {name: tuple(scope[name].shape) for name in ("image", "label", "cls", "patch")} == {
        "image": (2, 32, 32, 3),
        "label": (2,),
        "cls": (2, 64),
        "patch": (2, 4, 64),
    }
