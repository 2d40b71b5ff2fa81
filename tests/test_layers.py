"""The design's rules, held by the code's own imports and files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = {"views", "teachers", "store", "student", "evaluate"}
BASE = {"arithmetic", "bounds", "buffers", "config", "draws", "errors", "files", "saved", "weights"}
MODULES = sorted([*(ROOT / "unic_cache").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py"), ROOT / "cli.py"])


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


@pytest.mark.parametrize("part", sorted(PARTS))
def test_parts_import_none_of_each_other(part):
    for path in (ROOT / "unic_cache" / part).rglob("*.py"):
        own = {name.split(".")[1] for name in imports(path) if name.startswith("unic_cache.")}
        assert own <= BASE | {part}, f"{path.name} imports {own - BASE - {part}}"
        assert not any(name.split(".")[0] in {"pipelines", "cli"} for name in imports(path)), path


def test_only_pipelines_join_and_only_the_cli_imports_pipelines():
    for path in (ROOT / "unic_cache").rglob("*.py"):
        assert not any(name.split(".")[0] in {"pipelines", "cli"} for name in imports(path)), path
    for path in (ROOT / "pipelines").rglob("*.py"):
        assert "cli" not in {name.split(".")[0] for name in imports(path)}, path


def test_base_modules_import_no_part():
    for name in BASE:
        paths = [*(ROOT / "unic_cache" / name).rglob("*.py"), *(ROOT / "unic_cache").glob(f"{name}.py")]
        assert paths, name
        for path in paths:
            own = {found.split(".")[1] for found in imports(path) if found.startswith("unic_cache.")}
            assert own <= BASE, f"{path} imports {own - BASE}"


def test_no_pickle_no_eval_no_shell():
    for path in MODULES:
        tree = ast.parse(path.read_text())
        assert not imports(path) & {"pickle", "cloudpickle", "dill", "marshal", "subprocess"}, path
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in {"eval", "exec", "os.system", "compile"}, f"{path}: {name}"
                if name == "torch.load":
                    flags = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    assert flags.get("weights_only") == "True", path
                if name in {"np.load", "numpy.load"}:
                    assert {k.arg: ast.unparse(k.value) for k in node.keywords}.get("allow_pickle") == "False", path


def test_modules_are_small_enough_to_read():
    for path in MODULES:
        if path.name != "cli.py":
            assert len(path.read_text().splitlines()) <= 300, path


def test_no_drawer_for_odds_and_ends():
    assert not {path.stem for path in MODULES} & {"utils", "helpers", "common", "misc", "util", "helper"}


def test_every_public_function_has_a_docstring():
    for path in MODULES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in public(tree.body):
            assert ast.get_docstring(node), f"{path.name}: {node.name}"


def public(body: list[ast.stmt]) -> list[ast.FunctionDef | ast.ClassDef]:
    """Public functions and classes of a module, and public methods of public classes."""
    found = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"]
    return found + [inner for node in found if isinstance(node, ast.ClassDef) for inner in public(node.body)]
