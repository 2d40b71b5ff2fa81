"""Tables in pipes and on narrow terminals, and what is printed where an encoding lacks a letter."""

import io
import json
import sys

import pytest
from click.testing import CliRunner
from rich.console import Console

import cli
from pipelines.command.printing import print_in_any_encoding, print_table, results
from unic_cache.evaluate.bootstrap import Interval
from unic_cache.evaluate.tables import Neighbours, Score, TaskResult, score_table

WHOLE = Interval(1.0, 1.0, 1.0)
NAME = "timm:vit_large_patch14_dinov2.lvd142m-with-registers@518"
KINDS = {NAME: "teacher", "student": "student"}
TASK = TaskResult(
    "20-NN", "%", True, 9, 3, {name: Score(kind, {"20-NN": WHOLE}) for name, kind in KINDS.items()}, {}, NAME, {}
)
TABLE = score_table(
    [(name, kind, "cache", 1024) for name, kind in KINDS.items()],
    {"knn": TASK},
    [Neighbours(name, kind, 1024, {20: WHOLE}, WHOLE) for name, kind in KINDS.items()],
    "a title",
)
NUMBERS = "cache   1024   100.0 (100.0..100.0)   +100.0 (100.0..100.0)"


@pytest.mark.parametrize("columns", ["20", "80", None])
def test_a_pipe_gets_the_whole_table_whatever_columns_says(capsys, monkeypatch, columns):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    print_table(results(), TABLE)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert f"teacher {NAME}   {NUMBERS}" in lines
    assert len(lines) == 6


@pytest.mark.parametrize("width", [40, 80, 100])
def test_on_a_narrow_terminal_names_give_way_and_numbers_do_not(width):
    out = io.StringIO()
    print_table(Console(file=out, width=width, force_terminal=True, color_system=None, markup=False), TABLE)
    text = out.getvalue()
    assert NUMBERS in text
    assert "…" not in text
    parts = [line.split("  ")[0].strip() for line in text.splitlines()]
    assert NAME in "".join(parts).replace("teacher ", "").replace("teacher", "", 1)


def test_inspect_in_a_pipe_is_not_cut(cache_folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    text = CliRunner().invoke(cli.main, ["inspect", str(cache_folder)]).stdout
    assert "…" not in text
    assert all(f"{view}-32-0-000  " in text for view in ("unic", "center"))
    assert "82 images in 3 shards, 1 segment(s)" in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_encoding_prints(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    print_in_any_encoding()
    print_table(results(), TABLE)
    print("± ² … a file called \udcff\udce4 and 図")
    sys.stdout.flush()
    text = raw.getvalue().decode(encoding)
    assert text.count(" +100.0 (100.0..100.0)") == 2
    assert r"a file called \xff\xe4 and" in text
    assert ("+- 2 ... a file" in text) == (encoding == "ascii")
    assert (r"\u56f3" in text) == (encoding != "utf-8")


def test_json_is_json_in_any_encoding(cache_folder):
    done = CliRunner(charset="ascii").invoke(cli.main, ["inspect", str(cache_folder), "--json"])
    assert json.loads(done.stdout)["cache"] == str(cache_folder)
