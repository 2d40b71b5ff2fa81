"""The design's rules, held by the code's own imports and files."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = {"views", "teachers", "store", "student", "evaluate"}
BASE = {"ahead", "buffers", "config", "draws", "errors", "files", "inputs", "tf32", "token_kinds", "weights"}
DOOR = "unic_cache"  # the package's own file, for Python what cli.py is for the shell: it calls stages by late imports
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


GRAPH: dict[str, set[str]] = {}  # module -> the project's modules that it imports, late and for types too
ROOMS = ("command", "extracting")  # of pipelines/, that others may use; each uses only those before it


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def graph() -> dict[str, set[str]]:
    if not GRAPH:
        names = {dotted(path) for path in MODULES}
        GRAPH.update({dotted(path): (imports(path) & names) - {DOOR, "pipelines"} for path in MODULES})
    return GRAPH


def late(path: Path) -> set[str]:
    """What a file imports only when a function is called, or for types."""
    body = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    now = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    return imports(path) - now - {node.module for node in body if isinstance(node, ast.ImportFrom)}


def part_of(module: str) -> str:
    """`store` of unic_cache.store.commit, `config` of unic_cache.config."""
    return ([*module.split("."), ""])[1]


def test_parts_import_the_ground_and_themselves_and_the_ground_no_part():
    assert {part_of(name) for name in graph()} >= BASE | PARTS
    for name, imported in graph().items():
        if name.startswith("unic_cache.") and part_of(name) in BASE | PARTS:
            own = {part_of(other) for other in imported}
            assert own <= BASE | ({part_of(name)} & PARTS), f"{name} imports {own - BASE}"


def test_only_pipelines_join_and_only_the_cli_and_the_door_import_stages():
    for name, imported in graph().items():
        roots = {other.split(".")[0] for other in imported}
        assert "cli" not in roots, name
        assert name == DOOR or not name.startswith("unic_cache") or "pipelines" not in roots, name


def test_the_door_is_above_all_others_and_loads_nothing_by_itself():
    door = ROOT / DOOR / "__init__.py"
    assert {name for name in graph()[DOOR] if name.startswith("pipelines")} <= late(door)
    assert {part_of(name) for name in graph()[DOOR] - late(door)} <= {"config", "errors"}
    through = {"open_cache", "FeatureDataset", "extract", "distill", "evaluate", "load_heads"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
            assert not (isinstance(node, ast.Import) and DOOR in names), path
            assert not (isinstance(node, ast.ImportFrom) and node.module == DOOR and names & through), path


def test_a_stage_is_imported_by_no_other_file_but_repair_uses_verify():
    stages = {name for name in graph() if name.startswith("pipelines.") and name.count(".") == 1}
    stages -= {f"pipelines.{path.name}" for path in (ROOT / "pipelines").iterdir() if path.is_dir()}
    for name, imported in graph().items():
        allowed = {"pipelines.verify"} if name == "pipelines.repair" else set()
        assert name in {"cli", DOOR} or imported & stages <= allowed, name


def test_a_room_of_the_pipelines_uses_itself_and_the_shared_rooms_before_it():
    for name, imported in graph().items():
        room = part_of(name) if name.startswith("pipelines.") and name.count(".") == 2 else None
        if room:
            before = ROOMS[: ROOMS.index(room)] if room in ROOMS else ROOMS
            used = {part_of(other) for other in imported if other.startswith("pipelines.")}
            assert used <= {room, *before}, f"{name} uses {used - {room, *before}}"


def test_no_circles_not_even_for_types_or_by_a_late_import():
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in done:
            for other in sorted(graph()[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in sorted(graph()):
        visit(name, ())


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


def test_functions_fit_on_a_screen():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 45, f"{path}: {node.name}"


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
