"""`make gpu-check` on the CPU against itself: every step of it runs, and nothing differs."""

import json

import pytest
import torch

from benchmarks import gpu_check
from unic_cache.config import CODECS

SMALL = ["--device", "cpu", "--width", "8", "--images", "8"]


def test_the_cpu_agrees_with_itself_to_the_bit(capsys):
    assert gpu_check.main(SMALL) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    codecs = [f"{direction} {codec}" for codec in CODECS for direction in ("decode", "encode")]
    assert [line["check"] for line in found] == [*codecs, "ladder", "loss", "distill", "resume"]
    assert all(line["largest"] == 0 and line["good"] for line in found)


def test_a_difference_above_the_tolerance_fails(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "checks", lambda *_: [("loss", 2e-5, 1e-5), ("ladder", 0.0, 1e-4)])
    assert gpu_check.main(SMALL) == 1
    assert [json.loads(line)["good"] for line in capsys.readouterr().out.splitlines()] == [False, True]


def test_a_machine_without_cuda_is_told(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu_check.main([])
    assert "there is no CUDA device here; --device cpu compares the CPU with itself" in capsys.readouterr().err
