"""`inspect --provenance`: where a cache's features, or a student, come from."""

import json

from click.testing import CliRunner

import cli
from pipelines import distill, provenance
from tests.conftest import CNN, VIT
from unic_cache.config import InspectConfig


def test_of_a_cache_names_weights_source_licence_rules_and_versions(cache_folder, cache):
    found = provenance.run(InspectConfig(str(cache_folder)))["teachers"][VIT]
    assert found["weights_sha256"] == cache.teachers[VIT].spec["teacher"]["weights_sha256"]
    assert all(found[key] for key in ("licence", "published", "source", "weights_file_sha256"))
    assert found["preprocessing"]["input_size"] == 32
    assert len(found["preprocessing"]["mean"]) == len(found["preprocessing"]["std"]) == 3
    assert {"torch", "timm", "pillow"} <= set(found["versions"])


def test_of_a_student_names_the_licences_that_it_inherits(training, tmp_path):
    distill.run(training(steps=1))
    by_folder, by_file = (
        provenance.run(InspectConfig(str(tmp_path / "run" / name))) for name in ("", "encoder.safetensors")
    )
    assert {**by_folder, "encoder": ""} == {**by_file, "encoder": ""}
    (names,) = by_folder["inherits"].values()
    assert sorted(names) == sorted([VIT, CNN])
    assert all(len(teacher["weights_sha256"]) == 64 for teacher in by_folder["teachers"].values())


def test_on_the_command_line(cache_folder):
    runner = CliRunner()
    text = runner.invoke(cli.main, ["inspect", str(cache_folder), "--provenance"]).output
    for word in (VIT, CNN, "licence: ", "weights_sha256: ", "mean: ", "timm: "):
        assert word in text
    data = json.loads(runner.invoke(cli.main, ["inspect", str(cache_folder), "--provenance", "--json"]).stdout)
    assert set(data["teachers"]) == {VIT, CNN}
