"""What a run's log says: losses, shares, k-NN, and the hours that it took."""

import json

import pytest

from tests.report.made_up import write_run
from unic_cache.evaluate.curves import Training
from unic_cache.evaluate.run_log import cost, read_log, read_records, teacher_losses, teacher_shares


def test_records_of_all_kinds_are_read_in_order_and_broken_lines_left_out(tmp_path):
    write_run(tmp_path / "run")
    log = tmp_path / "run/log.jsonl"
    later = {"kind": "train", "step": 20, "loss": 7.0, "teachers": {}}
    bad = [
        '{"kind": "train", "step": 2',
        '{"kind": "train", "step": 5, "loss": NaN}',
        '{"kind": "train", "step": 5, "loss": 1.0, "teachers": {"dino": 3}}',
        '{"kind": "knn", "step": 5, "accuracy": 0.5}',
        '{"kind": "other", "step": 5}',
        "[]",
    ]
    log.write_text("\n".join([log.read_text(), *bad, json.dumps(later)]))
    places = [(record["kind"], record["step"]) for record in read_records(log)]
    assert places == [
        ("train", 10),
        ("train", 20),
        ("val", 20),
        ("knn", 20),
        ("train", 30),
        ("train", 40),
        ("val", 40),
        ("knn", 40),
    ]
    assert next(record["loss"] for record in read_records(log) if record["step"] == 20) == 7.0
    assert {record["kind"] for record in read_log(log)} == {"train", "val"}


def test_a_teachers_loss_is_the_mean_of_its_kinds_and_shares_are_no_losses():
    record = {"teachers": {"dino": {"cls": 1.0, "patch": 2.0, "coefficient": 0.7, "top": 0.4}}}
    assert teacher_losses(record) == {"dino": 1.5}
    assert teacher_shares(record, "top") == {"dino": 0.4}
    assert teacher_shares({}, "top") == {}


def test_hours_are_images_over_rates_and_waiting_is_weighed_by_time():
    rates = [(10, 100.0, 0.5), (20, 50.0, 0.1)]
    records = [{"kind": "train", "step": s, "images_per_second": r, "waiting": w} for s, r, w in rates]
    found = cost([*records, {"kind": "val", "step": 20}], batch_size=200)
    assert found is not None
    seconds = 2000 / 100 + 2000 / 50
    assert found.images == 4000
    assert found.hours == pytest.approx(seconds / 3600)
    assert found.images_per_second == pytest.approx(4000 / seconds)
    assert found.waiting == pytest.approx((20 * 0.5 + 40 * 0.1) / seconds)


def test_a_long_log_is_drawn_as_means_of_spans():
    records = [{"kind": "train", "step": n, "teachers": {"dino": {"cls": float(n % 7)}}} for n in range(1000)]
    points = Training("run", records, 0.5).points("train", teacher_losses, "dino")
    assert len(points) == 400
    assert points[0] == (1.0, 1.0)  # of steps 0, 1 and 2
    assert sum(step for step, _ in points[:200]) / 200 == pytest.approx(299.5)  # three steps each, then two
    assert points[-1] == (998.5, (998 % 7 + 999 % 7) / 2)
    assert Training("run", records[:400], 0.5).points("train", teacher_losses, "dino")[9] == (9, 2.0)


def test_a_log_without_rates_has_no_cost():
    assert cost([{"kind": "train", "step": 3, "loss": 1.0}], 8) is None
