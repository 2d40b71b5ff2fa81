"""Whole, incomplete and broken caches; mixed caches; exit codes and JSON."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

import cli
from pipelines import extract, repair
from tests.conftest import CNN, picture, png, tree, write_tar
from tests.verify.damage import CNN_FOLDER, VIEW, VIT_FOLDER, check, flip, record_of, rewrite
from unic_cache.config import RepairConfig
from unic_cache.errors import CacheError
from unic_cache.store import unit_check as stored
from unic_cache.store.calibrate import Calibration


class TestStates:
    def test_units_that_are_not_there_are_incomplete(self, broken):
        (broken / VIT_FOLDER / "commits/000000" / VIEW / "000001.json").unlink()
        shutil.rmtree(broken / CNN_FOLDER / "commits")
        report = check(broken)
        assert (report.state, report.exit_code, len(report.missing)) == ("incomplete", 3, 3)
        assert f"missing: {VIT_FOLDER}, view {VIEW} of shard 000001: is unfinished" in report.lines()

    def test_a_cache_with_nothing_committed_is_incomplete(self, broken):
        for path in broken.rglob("*"):
            if path.is_file() and path.parts[-2] != "index":
                path.unlink()
        assert check(broken).state == "incomplete"

    def test_appended_tars_are_expected_under_every_view_that_was_begun(self, broken, settings, tars, tmp_path):
        write_tar(tmp_path / "more/later.tar", [(f"later{n}", png(picture(n + 90)), 0) for n in range(3)])
        config = settings(
            broken, teachers=(), weights=(), keep_views=True, views=1, shards=str(tmp_path / "more/*.tar")
        )
        extract.run(config)
        report = check(broken)
        assert {(unit.member.folder, unit.unit.name) for unit in report.missing} == {
            (VIT_FOLDER, "later"),
            (CNN_FOLDER, "later"),
        }

    def test_foreign_files_are_named_and_harmless(self, broken):
        for name in ("README", f"{VIT_FOLDER}/notes.txt", f"{VIT_FOLDER}/commits/000000/{VIEW}/000007.json", "other/x"):
            (broken / name).parent.mkdir(exist_ok=True)
            (broken / name).write_text("hello")
        report = check(broken)
        assert (report.exit_code, len(report.foreign)) == (0, 4)
        assert "foreign but harmless: README" in report.lines()

    def test_no_cache_at_all_is_an_error(self, tmp_path):
        with pytest.raises(CacheError, match="no cache is here"):
            check(tmp_path)


class TestMixedCaches:
    def test_one_unit_of_another_calibration_is_uncommitted(self, broken, whole):
        rewrite(broken, CNN, 1, calibration=12345)
        (finding,) = check(broken).broken
        assert finding.mend == stored.UNCOMMIT
        assert "was made with a calibration of checksum 12345, but" in finding.why

    def test_a_calibration_that_fits_no_unit_is_to_blame_itself(self, broken):
        path = broken / CNN_FOLDER / "calibration.npz"
        found = Calibration.from_bytes(path.read_bytes(), "x")
        moved = dataclasses.replace(found, mean={kind: values + 1 for kind, values in found.mean.items()})
        path.write_bytes(moved.to_bytes())
        (finding,) = check(broken).broken
        assert (finding.mend, finding.file) == (stored.BY_HAND, f"{CNN_FOLDER}/calibration.npz")
        assert "but 2 units were made with one of checksum" in finding.why
        before = tree(broken)
        done = repair.run(RepairConfig(str(broken), threads=1))
        assert (done.done, len(done.left)) == ([], 1)
        assert tree(broken) == before

    def test_teachers_that_saw_different_pixels(self, broken, tars):
        record = record_of(broken, CNN, 1)
        rewrite(broken, CNN, 1, pixels=record.pixels ^ np.uint32(1))
        findings = check(broken).broken
        assert all("saw different pixels: two caches were mixed" in finding.why for finding in findings)
        report = check(broken, shards=str(tars / "*.tar"))
        told = [finding for finding in report.broken if "it holds another image" in finding.why]
        assert [(finding.member, finding.unit.name) for finding in told] == [(CNN_FOLDER, "000001")]


class TestCommandLine:
    @pytest.fixture
    def run(self):
        runner = CliRunner()
        return lambda *arguments: runner.invoke(cli.main, [str(argument) for argument in arguments])

    def test_exit_codes_0_1_3(self, run, broken, extracting):
        assert run("verify", broken).exit_code == 0
        (broken / VIT_FOLDER / "commits/000000" / VIEW / "000001.json").unlink()
        assert run("verify", broken, "--threads", 2).exit_code == 3
        flip(broken / VIT_FOLDER / "features.zarr/000000" / VIEW / "patch/c.0.0.0.0", 100)
        done = run("verify", broken)
        assert done.exit_code == 1
        assert done.output.splitlines()[-1] == (
            f"{broken} is broken: `unic-cache repair` un-commits what `extract` can make again, "
            "and lists what needs a person"
        )
        assert run("repair", broken, "--dry-run").stdout.startswith("would have un-committed ")
        assert run("repair", broken).exit_code == 0
        assert run("verify", broken).exit_code == 3

    def test_repair_exits_1_while_something_is_left_to_people(self, run, broken):
        flip(broken / VIT_FOLDER / "calibration.npz", 100)
        done = run("repair", broken)
        assert done.exit_code == 1
        assert "cannot be repaired automatically" in done.output

    def test_json_says_all(self, run, broken):
        flip(broken / VIT_FOLDER / "features.zarr/000000" / VIEW / "patch/c.0.0.0.0", 100)
        done = run("verify", broken, "--json")
        report = json.loads(done.stdout)
        assert (done.exit_code, report["state"], report["units"]) == (1, "broken", 6)
        assert report["broken"][0]["rows"] == [0]
        assert report["bytes"] > 0

    def test_settings_that_make_no_sense_exit_2(self, run, broken):
        assert run("verify", broken, "--pixel-check", 5).exit_code == 2
