"""Tokens on a lattice of the grid, from extraction to training, and beside random positions."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines import extract, inspect, recode, verify
from pipelines.extracting.sampling_rules import sampling_rules, tell
from pipelines.reporting.codec_losses import frequency_bits
from pipelines.training.targets import Targets
from tests.conftest import VIT, make_shards, tree
from unic_cache.cache import CachedTeacher, open_cache
from unic_cache.config import InspectConfig, RecodeConfig, Views
from unic_cache.errors import CacheError, ConfigError
from unic_cache.files.local import LocalFolder
from unic_cache.store.codecs.codec import Features
from unic_cache.store.layout import teacher_folder
from unic_cache.store.member import Member
from unic_cache.store.sampling import Sample, lattice_positions, sample_seen
from unic_cache.stream.address import Address
from unic_cache.stream.batches import Batch
from unic_cache.token_kinds import TokenKind

WIDE, ODD = "timm:test_vit@64", "timm:test_vit@48"  # 4 x 4 and 3 x 3 tokens
NAME, ROWS = "unic-32-0-000", 20


@pytest.fixture(scope="module")
def extracting(settings, weights, tmp_path_factory):
    """Runs of `extract` on two small tars, by default one view for one teacher of 16 tokens."""
    tars = make_shards(tmp_path_factory.mktemp("tars"), (4, ROWS))

    def run(folder, *names: str, **changes) -> CachedTeacher:
        names = names or (WIDE,)
        given = {"teachers": names, "weights": tuple((name, str(weights[VIT])) for name in names)}
        small = {"shards": tars.pattern, "views": 1, "calibration_images": 10, "keep_views": True}
        extract.run(settings(folder, **{**given, **small, **changes}))
        return open_cache(folder).teachers[names[0]]

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory, extracting):
    """All tokens in float16; never to be written to."""
    return extracting(tmp_path_factory.mktemp("whole") / "cache")


@pytest.fixture(scope="module")
def lattice(tmp_path_factory, extracting):
    """Four tokens, by the default rule, beside a teacher whose grid has no lattice of four; never to be written to."""
    return extracting(tmp_path_factory.mktemp("lattice") / "cache", WIDE, ODD, tokens=4)


@pytest.fixture
def copied(tmp_path, lattice):
    """A copy of that cache, to be written to."""
    return Path(shutil.copytree(lattice.member.location.url, tmp_path / "copied"))


def read(teacher: CachedTeacher) -> tuple[torch.Tensor, np.ndarray | None]:
    """(B, T, D) patch tokens of the second tar, and their positions by the public reader."""
    cache = open_cache(teacher.member.location.url)
    unit = cache.unit(0, 1, NAME)
    return teacher.features(teacher.record(unit), range(ROWS))["patch"], cache.positions(teacher, unit, range(ROWS))


def recoded(source: CachedTeacher, target, **changes) -> CachedTeacher:
    recode.run(RecodeConfig(source.member.location.url, str(target), device="cpu", threads=2, **changes))
    return open_cache(target).teachers[source.name]


class TestExtraction:
    def test_keeps_the_tokens_at_the_lattice_and_says_so(self, lattice, whole):
        kept, positions = read(lattice)
        every, none = read(whole)
        keys = open_cache(lattice.member.location.url).entry(0, 1).keys
        assert none is None
        assert np.array_equal(positions, lattice_positions(0, [(key, 0) for key in keys], (4, 4), 4))
        assert torch.equal(kept, every.take_along_dim(torch.from_numpy(positions)[..., None], dim=1))
        assert (lattice.spec["format"], lattice.spec["sampling"], lattice.spec["tokens"]) == (2, "lattice", 4)
        assert (whole.spec["format"], "sampling" in whole.spec) == (1, False)

    def test_klt_has_a_grid_of_the_lattice(self, tmp_path, lattice, extracting):
        teacher = extracting(tmp_path / "cache", codec="klt", quality=0.97, tokens=4)
        found = torch.cosine_similarity(read(teacher)[0], read(lattice)[0], dim=-1)
        assert teacher.calibration.klt["klt_rotation"].shape[0] == 2
        assert found.mean() > 0.95
        assert frequency_bits(teacher).shape == (2, 2)

    def test_what_was_kept_is_what_the_teacher_gives_again(self, lattice, weights):
        files = tuple((name, str(weights[VIT])) for name in (WIDE, ODD))
        config = verify.VerifyConfig(lattice.member.location.url, teacher_check=4, weights=files)
        assert verify.run(config).state == "whole"

    def test_inspect_tells_how_tokens_are_stored(self, tmp_path, lattice, extracting, capsys):
        small = extracting(tmp_path / "cache", codec="klt", quality=0.97, tokens=4, sampling="random").member.location
        for url, told in (
            (lattice.member.location.url, "f16, 4 lattice tokens"),
            (small.url, "klt zstd, 4 random tokens"),
        ):
            inspect.show(inspect.run(InspectConfig(url)))
            assert f"codec {told}, " in capsys.readouterr().out

    def test_goes_on_by_the_rule_of_the_cache(self, copied, extracting):
        before = tree(copied)
        assert extracting(copied, views=2).spec["sampling"] == "lattice"
        assert before.items() < tree(copied).items()


class TestRules:
    """Of teachers in a cache, or new beside them."""

    def rules(self, folder, tokens, asked=None, **grids):
        return list(sampling_rules(tokens, asked, LocalFolder(folder), grids).values())

    def test_are_what_each_grid_allows(self, tmp_path, lattice, capsys):
        assert self.rules(tmp_path, 4, a=(4, 4), b=(3, 3), c=None) == ["lattice", "random", "random"]
        rules = {
            name: one.spec.get("sampling") for name, one in open_cache(lattice.member.location.url).teachers.items()
        }
        assert rules == {WIDE: "lattice", ODD: None}
        tell(4, {"a": "lattice", "b": "random", "c": "random"}, {"a": (4, 4), "b": (3, 3), "c": None})
        assert "each view: 4 on a lattice of a's 4 x 4, 4 at random positions of b's 3 x 3\n" in capsys.readouterr().err

    def test_of_a_new_teacher_follow_one_of_its_grid_that_an_earlier_release_sampled(self, tmp_path, lattice):
        spec = {key: value for key, value in lattice.spec.items() if key != "sampling"}
        Member.ensure(LocalFolder(tmp_path), teacher_folder(WIDE), {**spec, "format": 1})
        grids = {WIDE: (4, 4), "new": (4, 4), "other": (6, 6)}
        assert self.rules(tmp_path, 4, **grids) == ["random", "random", "lattice"]
        assert self.rules(tmp_path, None, **grids) == ["random", "random", "random"]  # the others keep all
        assert self.rules(tmp_path, 4, "lattice", new=(4, 4)) == ["lattice"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"tokens": 4}, r"@48: the grid of 3 x 3 has no regular lattice of 4 tokens, only of 9, 1; choose one of"),
            ({}, "--sampling lattice chooses the positions of sampled tokens: add --tokens N"),
        ],
    )
    def test_of_a_lattice_that_is_none_before_anything_is_written(self, tmp_path, extracting, changes, message):
        with pytest.raises(ConfigError, match=message):
            extracting(tmp_path / "cache", WIDE, ODD, sampling="lattice", **{"tokens": None, **changes})
        assert not (tmp_path / "cache").exists() or not tree(tmp_path / "cache")

    def test_of_another_rule_or_count_than_before(self, copied, extracting):
        with pytest.raises(CacheError, match='was made with sampling "lattice", not "random"; use the same settings'):
            extracting(copied, tokens=4, sampling="random")
        with pytest.raises(CacheError, match="was made with tokens 4, not 5; use the same settings"):
            extracting(copied, tokens=5)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": 1}, "says format 1, which does not fit its sampling; put back a copy"),
            ({"sampling": "random"}, "says format 2, which does not fit its sampling; put back a copy"),
            ({"format": 3}, "says format 3, which does not fit its sampling; put back a copy"),
            ({"format": 4}, "format 4, but this release reads formats 1 to 3; upgrade it"),
            ({"sampling": "hexagons"}, "sampling 'hexagons' is unknown to this release; it knows lattice, random"),
            ({"tokens": None}, "has sampling lattice, but no patch tokens to sample"),
            ({"tokens": 5}, "the grid of 4 x 4 has no regular lattice of 5 tokens"),
        ],
    )
    def test_of_a_spec_that_says_two_things(self, tmp_path, lattice, change, message):
        (tmp_path / "teacher").mkdir()
        (tmp_path / "teacher/spec.json").write_text(json.dumps({**lattice.spec, **change}))
        with pytest.raises(CacheError, match=f"teacher/spec.json: {message}"):
            Member.open(LocalFolder(tmp_path), "teacher")


class TestRecode:
    def test_of_a_whole_grid_keeps_what_extraction_would_have_kept(self, tmp_path, whole, lattice):
        made = recoded(whole, tmp_path / "cache", tokens=4)
        ours, theirs = (
            {name: data for name, data in tree(at).items() if name.startswith("timm.test_vit@64") and "/c." in name}
            for at in (tmp_path / "cache", Path(lattice.member.location.url))
        )
        assert ours == theirs
        assert (made.spec["format"], made.spec["sampling"]) == (2, "lattice")

    def test_to_a_coarser_lattice_picks_the_codes_and_back_to_format_1_there_is_no_way(self, tmp_path, lattice):
        made = recoded(lattice, tmp_path / "cache", tokens=1)
        (one, place), (four, places) = read(made), read(lattice)
        assert torch.equal(one, four[torch.from_numpy(places == place)][:, None])
        assert made.spec["provenance"]["recoded_from"]["sampling"] == "lattice"

    @pytest.mark.parametrize("codec", ["f16", "klt"])
    def test_with_the_same_tokens_keeps_the_lattice(self, tmp_path, lattice, codec):
        made = recoded(lattice, tmp_path / "cache", codec=codec, cls_quality=1.0 if codec == "klt" else None)
        assert (made.spec["format"], made.spec["sampling"], made.spec["tokens"]) == (2, "lattice", 4)
        assert np.array_equal(read(made)[1], read(lattice)[1])

    def test_of_a_lattice_to_other_positions_is_refused(self, tmp_path, lattice):
        own = "keeps 4 on a lattice, which need not be the same; choose --tokens 4 or 1 and --sampling lattice"
        for changes in ({"tokens": 3}, {"tokens": 3, "sampling": "random"}, {"sampling": "random"}):
            with pytest.raises(CacheError, match=own):
                recoded(lattice, tmp_path / "cache", **changes)
        assert not (tmp_path / "cache").exists()

    def test_of_random_positions_to_a_lattice_is_refused(self, tmp_path, whole):
        source = recoded(whole, tmp_path / "random", tokens=9)  # which 16 tokens have no lattice of
        with pytest.raises(CacheError, match=r"keeps 9 at random positions, .* choose --sampling random, or extract"):
            recoded(source, tmp_path / "cache", tokens=4, sampling="lattice")
        made = recoded(source, tmp_path / "four", tokens=4)
        assert "sampling" not in made.spec

    def test_of_all_tokens_by_a_rule_is_refused(self, tmp_path, whole):
        with pytest.raises(
            ConfigError, match="--sampling random chooses the positions of sampled tokens: add --tokens"
        ):
            recoded(whole, tmp_path / "cache", sampling="random")


GRID = (12, 12)
ALL = Sample("lattice", 144)


def lattices(*counts: int) -> list[Sample]:
    return [Sample("lattice", count) for count in counts]


def at_random(*counts: int) -> list[Sample]:
    return [Sample("random", count) for count in counts]


class TestTraining:
    @pytest.mark.parametrize(
        ("stored", "asked", "seen"),
        [
            ([ALL, ALL], None, 144),
            ([ALL], 50, "random 50"),
            ([ALL], 36, "random 36"),  # as runs of earlier releases
            ([*at_random(60, 30), ALL], None, "random 30"),
            (at_random(60, 30), 20, "random 20"),
            ([*lattices(36), ALL], None, "lattice 36"),
            (lattices(36, 9), None, "lattice 9"),
            (lattices(36, 16), None, "lattice 4"),  # strides 2 and 3 have stride 6 in common
            (lattices(36, 36), 9, "lattice 9"),
            ([*lattices(36), *at_random(144)], None, "lattice 36"),
        ],
    )
    def test_sees_positions_that_all_teachers_have(self, stored, asked, seen):
        found = sample_seen(GRID, {f"t{place}": sample for place, sample in enumerate(stored)}, asked)
        assert found.count == 144 if seen == 144 else f"{found.rule} {found.count}" == seen
        assert all(sample.holds(found, GRID) for sample in stored)

    @pytest.mark.parametrize(
        ("stored", "asked", "message"),
        [
            (
                [*lattices(36), *at_random(60)],
                None,
                "36 on a lattice of t0 and 60 at random positions of t1 are stored",
            ),
            (
                lattices(36),
                20,
                "--tokens 20, but the stored tokens of the grid 12 x 12 share 36 on a lattice; choose 36",
            ),
            (lattices(36), 16, "choose 36 or 9 or 4 or 1, or leave --tokens out"),
            (at_random(60), 61, "--tokens 61, but only 60 tokens of the grid 12 x 12 are stored"),
        ],
    )
    def test_refuses_what_cannot_be_served(self, stored, asked, message):
        with pytest.raises(ConfigError, match=message):
            sample_seen(GRID, {f"t{place}": sample for place, sample in enumerate(stored)}, asked)

    @pytest.mark.parametrize("counts", [(None, 4), (16, 4, None), (4, 1), (4,)])
    def test_every_teacher_gives_the_same_positions(self, training, cache, counts):
        """Each token's value is its position, so targets show where they come from."""
        kinds, keys = {"patch": TokenKind(1, (4, 4))}, cache.entry(0, 0).keys[:5]
        teachers, tokens = [], {}
        for place, count in enumerate(counts):
            features = Features("f16", kinds, count, sampling="lattice" if count else "random")
            codec = SimpleNamespace(features=features)
            teachers.append(SimpleNamespace(name=f"t{place}", kinds=kinds, codec=codec, calibration=None))
            stored = features.positions(7, [(key, 1) for key in keys])
            stored = np.tile(np.arange(16), (5, 1)) if stored is None else stored
            tokens[f"t{place}"] = {"patch": torch.from_numpy(stored)[..., None]}
        cpu, wanted = torch.device("cpu"), [Address(0, 0, row, 1) for row in range(5)]
        views = dataclasses.replace(Views(), seed=7)
        targets = Targets(training(), cache, teachers, views, lambda *_: tokens, cpu)
        found, seen = targets(Batch(wanted, torch.zeros(5), {}, torch.ones(5, dtype=torch.bool)), torch.zeros(5))
        least = min(count or 16 for count in counts)
        assert np.array_equal(seen[4, 4], lattice_positions(7, [(key, 1) for key in keys], (4, 4), least))
        for kinds_of in found.values():
            assert torch.equal(kinds_of["patch"][..., 0], seen[4, 4])
