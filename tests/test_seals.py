"""Seals: one file for a thousand records, made of them alone, by which a huge cache opens. A run is two tars here."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest

from pipelines import distill, extract, repair, status, verify
from pipelines.recode import seal_target
from tests.conftest import CNN, VIT, tree
from unic_cache.cache import Cache, open_cache
from unic_cache.config import RecodeConfig, RepairConfig, StatusConfig, VerifyConfig, Views
from unic_cache.errors import BrokenError, CacheError
from unic_cache.files.local import LocalFolder
from unic_cache.store import seal
from unic_cache.store.commit import CommitRecord
from unic_cache.store.seal import Seal, parse_seal, runs, tars_of
from unic_cache.stream.rows import usable_rows
from unic_cache.stream.sealed_rows import wrote_down
from unic_cache.stream.sealing import seal_whole_runs

VIEWS = Views("unic", 32, 0)
NAMES = ("000000", "000001", "000002")
CENTER = Views("center", 32, 0)


@pytest.fixture(autouse=True)
def two_tars_a_run(monkeypatch):
    monkeypatch.setattr(seal, "RUN", 2)


class Counting(LocalFolder):
    """Counts what is read, by the kind of file."""

    def __init__(self, path) -> None:
        super().__init__(path)
        self.read_names: list[str] = []

    def read(self, name):
        self.read_names.append(name)
        return super().read(name)

    def read_range(self, name, offset, size):
        self.read_names.append(name)
        return super().read_range(name, offset, size)

    @property
    def records_read(self) -> int:
        return sum("/commits/" in name for name in self.read_names)


@pytest.fixture
def plain(cache_folder, tmp_path):
    """A cache without seals."""
    return shutil.copytree(cache_folder, tmp_path / "plain")


@pytest.fixture
def sealed(plain, tmp_path):
    """The same with seals."""
    folder = shutil.copytree(plain, tmp_path / "sealed")
    add_seals(folder)
    return folder


def add_seals(folder) -> int:
    cache = open_cache(folder)
    kinds = ((VIEWS, (0, 1)), (CENTER, (0,)))
    return sum(seal_whole_runs(cache, one.member, *kind) for one in cache.teachers.values() for kind in kinds)


def member_folder(teacher: str) -> str:
    return teacher.replace(":", ".")


def record_of(folder, teacher: str, shard: int, number: int):
    return folder / member_folder(teacher) / f"commits/000000/{VIEWS.name(number)}/{shard:06d}.json"


def seal_file(folder, teacher: str, run: int, number: int):
    return folder / member_folder(teacher) / f"seals/000000/{VIEWS.name(number)}/{run:06d}.json"


def rows_of(folder, **how):
    """What `usable_rows` finds, in plain data, and the records that it writes down."""
    cache = Cache(Counting(folder))
    teachers = [cache.teachers[name] for name in (CNN, VIT)]
    rows, records = usable_rows(cache, teachers, VIEWS, (0, 1), how.pop("names", NAMES), **how)
    found = [(segment, shard, own.tolist()) for segment, shard, own in rows.by_tar()]
    return (found, rows.left_out, dict(rows.lacking)), records, cache.location.records_read


def spoil(path, **changes):
    """Change fields of a record or seal, and its checksum with them: it is whole, but another one."""
    body = {**json.loads(path.read_bytes()), **changes}
    del body["self"]
    own = int(seal.crc32c(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()))
    path.write_bytes(json.dumps({**body, "self": own}, sort_keys=True, separators=(",", ":")).encode())


def test_runs_cover_a_segment_and_small_segments_have_none(monkeypatch):
    assert [list(tars_of(run, 5)) for run in runs(5)] == [[0, 1], [2, 3], [4]]
    assert not runs(1)
    monkeypatch.setattr(seal, "RUN", 1000)
    assert not runs(999)
    assert [len(tars_of(run, 2001)) for run in runs(2001)] == [1000, 1000, 1]


def test_a_seal_says_what_its_records_say(sealed):
    member = open_cache(sealed).teachers[VIT].member
    cache = open_cache(sealed)
    for run, tars in ((0, (0, 1)), (1, (2,))):
        records = [member.record(cache.unit(0, tar, VIEWS, 1)) for tar in tars]
        body = json.loads(seal_file(sealed, VIT, run, 1).read_bytes())
        assert body["rows"] == "".join(f"{record.unit.rows:08x}" for record in records)
        assert body["records"] == "".join(f"{record.checksum:08x}" for record in records)
        assert body["bad"] == {str(record.unit.shard): sorted(record.bad) for record in records if record.bad}
        assert body["calibration"] == records[0].calibration
        assert Seal.of(records).to_bytes() == seal_file(sealed, VIT, run, 1).read_bytes()


def test_rows_are_the_same_by_seals_and_no_record_is_read(plain, sealed):
    found, records, read = rows_of(plain)
    assert read == len(records) == 12
    by_seals, seals, read = rows_of(sealed)
    assert by_seals == found
    assert read == 0
    assert len(seals) == 8
    assert all("/seals/" in name for name in seals)
    some, part, read = rows_of(sealed, names=("000002", "000000"))
    assert [shard for _, shard, _ in some[0]] == [2, 0]
    assert part == seals
    assert read == 0


def test_bad_rows_are_left_out_by_seals_too(plain):
    path = record_of(plain, VIT, 1, 1)
    pixels = json.loads(path.read_bytes())["pixels"]
    spoil(
        path,
        bad={"3": "unreadable", "38": "unreadable"},
        pixels=[0 if at in (3, 38) else x for at, x in enumerate(pixels)],
    )
    found, *_ = rows_of(plain, skip_broken=True)
    assert add_seals(plain) == 12
    by_seals, _, read = rows_of(plain, skip_broken=True)
    assert by_seals == found
    assert found[0][1][2] == [row for row in range(40) if row not in (3, 38)]
    assert read == 2 * 2  # one tar has other pixels: its records are looked at under both views


def test_tars_that_need_a_closer_look_are_told_as_without_seals(plain, sealed):
    for folder in (plain, sealed):
        path = record_of(folder, VIT, 0, 0)
        spoil(path, pixels=[1] * 37)
    shutil.rmtree(sealed / member_folder(VIT) / "seals")
    add_seals(sealed)
    for folder in (plain, sealed):
        with pytest.raises(BrokenError, match="saw different pixels in view unic-32-0-000 of shard 000000"):
            rows_of(folder)
    assert rows_of(sealed, skip_broken=True)[0] == rows_of(plain, skip_broken=True)[0]
    assert rows_of(sealed, skip_broken=True)[0][1] == 37


@pytest.mark.parametrize("lacked", [[(1, 1)], [(2, 0), (2, 1)], [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]])
def test_a_teacher_that_is_half_done_is_missing_where_it_was(plain, sealed, lacked):
    for folder in (plain, sealed):
        shutil.rmtree(folder / member_folder(CNN) / "seals", ignore_errors=True)
        for shard, number in lacked:
            record_of(folder, CNN, shard, number).unlink()
    assert add_seals(sealed) == 6 - len({(shard // 2, number) for shard, number in lacked}) + 0
    with pytest.raises(BrokenError, match=f"{CNN} has no view"):
        rows_of(sealed)
    found, records, _ = rows_of(plain, may_lack=True)
    by_seals, seals, _ = rows_of(sealed, may_lack=True)
    assert by_seals == found
    for known in (records, seals):  # what was written down before, and what there is now
        for folder in (plain, sealed):
            again, same, _ = rows_of(folder, may_lack=True, known=known)
            assert (again, same) == (found, known)


def test_what_was_extracted_and_sealed_since_a_run_began_stays_missing_to_it(plain, sealed):
    for shard, number in ((1, 1), (2, 0), (2, 1)):
        record_of(plain, CNN, shard, number).unlink()
    found, known, _ = rows_of(plain, may_lack=True)
    assert found[2] == {CNN: 40 + 5 + 5}
    assert rows_of(sealed, may_lack=True, known=known)[:2] == (found, known)


def test_what_a_run_wrote_down_is_found_again_with_and_without_seals(plain, sealed):
    _, records, _ = rows_of(plain)
    _, seals, _ = rows_of(sealed)
    for before in (records, seals):
        for folder in (plain, sealed):
            assert rows_of(folder, before=before)[1] == before
    spoil(record_of(plain, CNN, 1, 0), clipped=7)
    assert rows_of(plain, before=records)[1] != records
    assert rows_of(plain, before=seals)[1] != seals
    for folder, same in ((sealed, True), (plain, False)):
        cache = open_cache(folder)
        teacher = cache.teachers[CNN]
        record = teacher.record(cache.unit(0, 1, VIEWS, 0))
        assert [wrote_down(before, cache, teacher, record) for before in (records, seals)] == [same, same]
        assert not wrote_down({}, cache, teacher, record)


def test_a_record_that_was_replaced_is_not_the_one_that_its_seal_stands_for(sealed):
    spoil(record_of(sealed, CNN, 1, 0), clipped=7)
    cache = open_cache(sealed)
    teacher, unit = cache.teachers[CNN], cache.unit(0, 1, VIEWS, 0)
    assert isinstance(teacher.record(unit), CommitRecord)  # nothing has been taken from the seal
    usable_rows(cache, [teacher], VIEWS, (0,), NAMES)
    with pytest.raises(BrokenError, match=r"has checksum .* but .*/seals/.*/000000.json stands for one of .* replaced"):
        teacher.record(unit)


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data.replace(b'"run":0', b'"run":1'),
        lambda data: data[:-9],
        lambda data: b"[1]",
        lambda data: b"\xff" + data,
        lambda data: data.replace(b'"bad":{', b'"bad":{"0":[99],', 1),
    ],
)
def test_a_damaged_seal_is_ignored_told_by_verify_and_removed_by_repair(sealed, plain, harm):
    path = seal_file(sealed, VIT, 0, 0)
    before = path.read_bytes()
    path.write_bytes(harm(before))
    assert rows_of(sealed)[0] == rows_of(plain)[0]
    assert rows_of(sealed)[2] == 2
    report = verify.run(VerifyConfig(str(sealed)))
    told = [(finding.file, finding.member, finding.mend) for finding in report.broken]
    assert told == [(str(path.relative_to(sealed)), member_folder(VIT), "remove")]
    repair.run(RepairConfig(str(sealed)))
    assert not path.exists()
    assert add_seals(sealed) == 1
    assert path.read_bytes() == before
    assert verify.run(VerifyConfig(str(sealed))).state == "whole"


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: spoil(path, rows="00000001" * 2),  # of other tars
        lambda path: spoil(path, calibration=7),  # of a cache with other statistics
    ],
)
def test_units_behind_a_seal_that_does_not_fit_are_listed_missing_and_made(sealed, settings, harm):
    before = tree(sealed)
    harm(seal_file(sealed, VIT, 0, 0))
    record_of(sealed, VIT, 1, 0).unlink()
    cache = open_cache(sealed)
    assert sorted(cache.teachers[VIT].member.committed(0, VIEWS.name(0), cache.segments[0].counts)) == [0, 2]
    (found,) = status.run(StatusConfig(str(sealed)))
    assert (found["state"], found["missing"]) != ("complete", 0)
    assert found["members"][VIT]["views"][VIEWS.name(0)] == {"done": 2, "missing": 1}
    assert extract.run(settings(sealed)).units == 1
    assert record_of(sealed, VIT, 1, 0).read_bytes() == before[str(record_of(sealed, VIT, 1, 0).relative_to(sealed))]


def test_committed_tars_are_known_by_seals_alone(sealed):
    cache = Cache(Counting(sealed))
    cache.location.names_between = None  # no record is listed
    for number in (0, 1):
        member = cache.teachers[VIT].member
        assert list(member.committed(0, VIEWS.name(number), cache.segments[0].counts)) == [0, 1, 2]
    read = Counter(name for name in cache.location.read_names if "/seals/" in name)
    assert len(read) == read.total() == 4


def test_a_seal_of_other_tars_is_no_seal(sealed):
    path = seal_file(sealed, VIT, 0, 0)
    name = str(path.relative_to(sealed))
    assert parse_seal(path.read_bytes(), name, [37, 40]) is not None
    assert parse_seal(path.read_bytes(), name, [37, 41]) is None
    assert parse_seal(path.read_bytes(), name, [37]) is None
    assert parse_seal(path.read_bytes(), name.replace("-000/", "-001/"), [37, 40]) is None
    for change in ({"bad": {"1": [40]}}, {"bad": {"2": [0]}}, {"run": "0"}, {"rows": "x"}, {"view": 5}, {"more": 1}):
        before = path.read_bytes()
        spoil(path, **change)
        assert parse_seal(path.read_bytes(), name, [37, 40]) is None
        path.write_bytes(before)


def test_repair_removes_a_seal_with_a_record_and_extract_makes_both_again(sealed, settings):
    before = tree(sealed)
    record_of(sealed, CNN, 1, 1).write_bytes(b"{}")
    assert any("not all of its" in finding.why for finding in verify.run(VerifyConfig(str(sealed))).broken)
    repair.run(RepairConfig(str(sealed)))
    assert not seal_file(sealed, CNN, 0, 1).exists()
    assert not record_of(sealed, CNN, 1, 1).exists()
    extract.run(settings(sealed))
    assert tree(sealed) == before


def test_seals_of_a_member_of_another_cache_are_left_alone_with_it(sealed):
    for path in (sealed / member_folder(VIT)).glob("commits/*/*/*.json"):
        spoil(path, rows=99)
    before = tree(sealed)
    (finding,) = verify.run(VerifyConfig(str(sealed))).broken
    assert (finding.member, finding.mend) == (member_folder(VIT), "by hand")
    repair.run(RepairConfig(str(sealed)))
    assert tree(sealed) == before


def test_workers_seal_what_they_complete_and_a_missing_seal_is_made_by_the_next_run(
    tmp_path, settings, sealed, monkeypatch
):
    folder, made = tmp_path / "cache", Counter()
    create = LocalFolder.create
    monkeypatch.setattr(
        LocalFolder, "create", lambda self, name, data: (made.update([name]), create(self, name, data))[1]
    )
    for worker in (0, 1):
        extract.run(settings(folder, worker_index=worker, num_workers=2))
    expected = {name: data for name, data in tree(sealed).items() if "/seals/" in name and "unic" in name}
    assert {name: data for name, data in tree(folder).items() if "/seals/" in name} == expected
    assert set(made.values()) == {1} or all(made[name] == 1 for name in expected)
    shutil.rmtree(folder / member_folder(VIT) / "seals")
    extract.run(settings(folder))
    assert {name: data for name, data in tree(folder).items() if "/seals/" in name} == expected


def test_committed_tars_are_the_same_by_seals_and_by_names(plain, sealed):
    for folder in (plain, sealed):
        seal_file(folder, CNN, 0, 1).unlink(missing_ok=True)
        record_of(folder, CNN, 0, 1).unlink()
    one, other = (open_cache(folder) for folder in (plain, sealed))
    for name in (CNN, VIT):
        found = [
            [
                (views, number, segment, sorted(tars))
                for views, number, segment, tars in cache.committed(cache.teachers[name].member)
            ]
            for cache in (one, other)
        ]
        assert found[0] == found[1]
        assert len(found[0]) == 3


def test_a_recoded_cache_is_sealed(sealed, plain):
    seal_target(RecodeConfig(str(sealed), str(plain)))
    assert tree(plain) == tree(sealed)


def test_a_run_that_began_before_the_seals_resumes_with_them_to_the_bit(training, tmp_path):
    config = training(steps=4, save_every=2, log_every=1)
    whole = distill.run(config)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    snapshot = json.loads((tmp_path / "run" / "snapshot.json").read_text())
    assert any("/seals/" not in name for name in snapshot["records"])
    add_seals(config.cache)
    again = distill.run(training(steps=4, save_every=2, log_every=1, out=str(tmp_path / "sealed")))
    assert again.loss == whole.loss
    assert all("/seals/" in name for name in json.loads((tmp_path / "sealed/snapshot.json").read_text())["records"])
    whole.encoder.unlink()  # else the runs are finished, and open no cache
    again.encoder.unlink()
    assert distill.run(training(steps=4, save_every=2, log_every=1, resume=True)).loss == whole.loss
    assert log
    shutil.rmtree(config.cache + "/" + member_folder(CNN) + "/seals")
    spoil(record_of(type(tmp_path)(config.cache), CNN, 1, 0), clipped=7)
    with pytest.raises(CacheError, match="its commit records changed since the run began"):
        distill.run(training(steps=4, save_every=2, log_every=1, resume=True, out=str(tmp_path / "sealed")))
    assert np.isfinite(whole.loss)
