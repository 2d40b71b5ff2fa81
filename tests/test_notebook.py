"""examples/notebook.ipynb runs from top to bottom, and again; its cells share one namespace as in a notebook."""

import json
from pathlib import Path

import pytest

from tests.conftest import tree
from tests.test_readme import ROOT


@pytest.mark.slow
def test_the_notebook_runs_twice(tmp_path, monkeypatch):
    book = json.loads((ROOT / "examples/notebook.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell.get("outputs", []) == [] for cell in book["cells"]), "commit it without outputs"
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in cells:
        exec(cell, names)
    assert {one["name"] for one in names["result"].to_json()["encoders"]} >= {"student", "random student"}
    assert (Path("notebook") / "student" / "encoder.safetensors").exists()
    before = tree(Path("notebook/student"))
    for cell in cells:
        exec(cell, names)
    assert tree(Path("notebook/student")) == before
