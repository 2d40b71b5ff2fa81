"""Every flipped byte is reported in its place, as is a file that is truncated, empty, zeroed or missing."""

from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c

from pipelines.verify import Report
from pipelines.verifying.metadata import read_members
from tests.conftest import CNN, tree
from tests.verify.damage import CNN_FOLDER, VIEW, VIT_FOLDER, check, flip
from unic_cache.cache import open_cache
from unic_cache.files.schemes import open_location
from unic_cache.store import unit_check as stored

MASKS = (0x01, 0x80, 0x20, 0x10, 0x04)


def places(size: int) -> list[int]:
    """Twelve bytes of a file's header, payload, index and end."""
    wanted = [
        0,
        1,
        size // 7,
        size // 4,
        size // 3,
        size // 2,
        2 * size // 3,
        3 * size // 4,
        size - 19,
        size - 3,
        size - 1,
    ]
    return sorted({place for place in wanted if 0 <= place < size})


def test_a_whole_cache_is_whole_and_all_of_it_was_read(whole):
    report = check(whole)
    objects = sum(len(data) for name, data in tree(whole).items() if "/c." in name)
    assert (report.state, report.exit_code, report.broken, report.missing, report.foreign) == ("whole", 0, [], [], [])
    assert (report.units, report.rows, report.bytes) == (6, 3 * 40, objects)


@pytest.mark.slow
def test_a_byte_flipped_anywhere_in_any_file_is_reported_there(whole, broken):
    flips, reported = 0, 0
    for name, data in tree(whole).items():
        for number, place in enumerate(places(len(data))):
            flip(broken / name, place, MASKS[number % len(MASKS)])
            report = check(broken)
            flips += 1
            reported += report.exit_code == 1 and any(name in str(finding) for finding in report.broken)
            assert report.exit_code == 1, (name, place, "not reported")
            assert any(name in str(finding) for finding in report.broken), (name, place, report.lines())
            (broken / name).write_bytes(data)
    print(f"{flips} bytes flipped in {len(tree(whole))} files, {reported} reported")
    assert reported == flips > 300
    assert check(broken).exit_code == 0


@pytest.mark.parametrize("mask", [0x01, 0x02, 0x20, 0x80])
@pytest.mark.parametrize("name", [f"{CNN_FOLDER}/features.zarr/000000/{VIEW}/cls/zarr.json", f"{VIT_FOLDER}/spec.json"])
def test_metadata_without_a_byte_to_spare(whole, broken, name, mask):
    """Every byte of a file without a checksum, including white space."""
    data = (whole / name).read_bytes()
    for place in range(0, len(data), 7):
        flip(broken / name, place, mask)
        report = Report("")
        members, _ = read_members(open_location(broken), tree_names(broken), report.broken)
        for member in members:
            if name.startswith(f"{member.folder}/features"):
                finding = stored.check_metadata_file(member, name, data)
                report.broken += [finding] if finding else []
        assert report.broken, place
        (broken / name).write_bytes(data)


def tree_names(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


class TestPlaces:
    def test_a_row_is_named_with_teacher_view_and_shard(self, broken):
        flip(broken / VIT_FOLDER / "features.zarr/000000" / VIEW / "patch/c.0.0.0.0", 33 * 4 * 64 + 5)
        (finding,) = check(broken).broken
        assert (finding.member, finding.array, finding.rows) == (VIT_FOLDER, "patch", (33,))
        assert str(finding).startswith(f"{VIT_FOLDER}, view {VIEW} of shard 000000, patch, rows 33: ")
        assert {
            "teacher": VIT_FOLDER,
            "view": VIEW,
            "shard": "000000",
            "rows": [33],
        }.items() <= finding.to_json().items()

    def test_a_bad_images_row_must_be_zeros(self, broken):
        flip(
            broken / CNN_FOLDER / "features.zarr/000000" / VIEW / "cls/c.0.0.0",
            3 * 2 * row_width(broken, CNN, "cls") + 1,
        )
        (finding,) = check(broken).broken
        assert finding.rows == (3,)

    def test_what_lies_behind_the_last_row_must_be_zeros(self, broken):
        flip(
            broken / CNN_FOLDER / "features.zarr/000000" / VIEW / "cls/c.1.0.0", 20 * 2 * row_width(broken, CNN, "cls")
        )
        (finding,) = check(broken).broken
        assert (finding.rows, finding.why) == ((20,), "is not zero beyond the tar's last row")

    def test_an_index_that_points_elsewhere_with_a_right_checksum(self, broken):
        path = broken / CNN_FOLDER / "features.zarr/000000" / VIEW / "cls/c.0.0.0"
        data = bytearray(path.read_bytes())
        data[-36:-4] = np.array([2**40, 2**40, 2**63, 4], "<u8").tobytes()
        data[-4:] = crc32c(bytes(data[-36:-4])).to_bytes(4, "little")
        path.write_bytes(bytes(data))
        (finding,) = check(broken).broken
        assert (finding.why, len(finding.rows)) == ("its index is broken", 35)

    def test_large_objects_are_read_in_pieces_with_the_same_findings(self, broken, monkeypatch):
        monkeypatch.setattr(stored, "PIECE_BYTES", 1000)
        assert check(broken).exit_code == 0
        path = broken / VIT_FOLDER / "features.zarr/000000" / VIEW / "patch/c.0.0.0.0"
        flip(path, 33 * 4 * 64 + 5)
        assert check(broken).broken[0].rows == (33,)
        path.write_bytes(path.read_bytes()[:-9])
        assert "bytes instead of" in check(broken).broken[0].why

    def test_rows_that_were_shuffled_are_all_named(self, broken):
        path = broken / "views/features.zarr/000000" / VIEW / "rgb/c.0.0.0.0.0"
        data, size = path.read_bytes(), 32 * 32 * 3
        path.write_bytes(data[size : 2 * size] + data[:size] + data[2 * size :])
        (finding,) = check(broken).broken
        assert (finding.member, finding.rows) == ("views", (0, 1))


def row_width(folder: Path, teacher: str, kind: str) -> int:
    return open_cache(folder).teachers[teacher].kinds["cls"].channels if kind == "cls" else 0


FILES = [
    "index/000000.json",
    "probe/unic-32-0.npz",
    f"{VIT_FOLDER}/spec.json",
    f"{VIT_FOLDER}/calibration.npz",
    f"{VIT_FOLDER}/features.zarr/zarr.json",
    f"{VIT_FOLDER}/features.zarr/000000/{VIEW}/patch/zarr.json",
    f"{VIT_FOLDER}/features.zarr/000000/{VIEW}/patch/c.0.0.0.0",
    f"{VIT_FOLDER}/commits/000000/{VIEW}/000000.json",
    "views/spec.json",
    f"views/features.zarr/000000/{VIEW}/rgb/c.1.0.0.0.0",
]
DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "one byte long": lambda data: data + b"\0",
    "emptied": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "deleted": lambda data: None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_are_cut_emptied_zeroed_or_gone(whole, broken, damage):
    for name in FILES:
        data = (whole / name).read_bytes()
        spoiled = DAMAGES[damage](data)
        (broken / name).unlink() if spoiled is None else (broken / name).write_bytes(spoiled)
        report = check(broken)
        if damage == "deleted" and ("/commits/" in name or "probe/" in name):
            assert (report.exit_code, len(report.missing) + len(report.probes)) == (3, 1)
            assert any("missing: " in line for line in report.lines())
        else:
            assert report.exit_code == 1, name
            assert any(name in str(finding) for finding in report.broken), (name, report.lines())
        (broken / name).write_bytes(data)
    assert check(broken).exit_code == 0
