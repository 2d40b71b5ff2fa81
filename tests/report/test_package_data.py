"""What a page is made with is installed with the package."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_file_that_is_no_module_is_named_as_package_data():
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    package = ROOT / "unic_cache"
    there = {path for path in package.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    shipped = {path for pattern in named["unic_cache"] for path in package.glob(pattern)}
    assert there == shipped
    assert package / "evaluate/page.html.j2" in shipped
