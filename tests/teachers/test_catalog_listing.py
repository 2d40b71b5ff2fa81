"""`unic-cache teachers`: grouped, filtered, with licence and size, quickly, and as JSON."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import cli
from unic_cache.teachers.catalog import CATALOG
from unic_cache.teachers.spec import TeacherSpec


def run(*words):
    return CliRunner().invoke(cli.main, ["teachers", *words], catch_exceptions=False)


def test_every_teacher_has_a_line_with_size_and_licence():
    out = run().stdout
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert lines.keys() == CATALOG.keys()
    assert "1,134.8 M" in lines["dinov2-g"]
    assert "256 tokens of 1,536  CLS 1,536" in lines["dinov2-g"]
    assert lines["dinov2-g"].endswith("Apache-2.0")
    assert "no CLS" in lines["sam-b"]
    assert "3 CLS 768" in lines["c-radio-v3-b"]
    assert max(map(len, lines.values())) < 125


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["siglip2", "NAFLEX"], {"siglip2-naflex-b", "siglip2-naflex-so400m"}),
        (["fair", "convnext"], {"eupe-convnext-t", "eupe-convnext-s", "eupe-convnext-b"}),
        (["dino", "sam-b"], {"dino", "sam-b"}),  # names alone
    ],
)
def test_words_choose(words, names):
    found = json.loads(run(*words, "--json").stdout)
    assert {one["name"] for one in found} == names
    assert all(one["parameters_millions"] > 0 and one["channels"] and one["family"] for one in found)


def test_few_teachers_are_told_in_full():
    out = run("unic").stdout
    assert "network vit_base_patch16_224, mean/std 0.485,0.456,0.406/0.229,0.224,0.225, positions bicubic-scale" in out
    assert "targets: cls norm-cls, patch norm-patch" in out
    assert "weights: a file (--weights); published: https://" in out
    assert "not checked on the real weights" in out


def test_the_json_of_a_teacher_holds_its_spec():
    (found,) = json.loads(run("dino", "--json").stdout)
    own = CATALOG["dino"].to_json()
    assert TeacherSpec.from_json({key: found[key] for key in own}) == CATALOG["dino"]


def test_words_without_a_teacher_are_an_error():
    done = run("dinov9")
    assert done.exit_code == 1
    assert "no teacher has 'dinov9' in its name or description; close names: dino, dinov" in done.stderr


def test_the_listing_imports_neither_torch_nor_timm():
    code = "import sys, cli; cli.main(['teachers'], standalone_mode=False); print({'torch', 'timm'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
