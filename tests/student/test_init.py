"""`--init`: weights from files and from timm's collection."""

import argparse
import pickle
import socket
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from timm.layers import resample_abs_pos_embed

from unic_cache.errors import ConfigError
from unic_cache.student.backbone import EncoderSpec, build_encoder
from unic_cache.student.weights import read_weights

TINY = EncoderSpec("vit_tiny_patch16_224", 32, 8)
NAME = "vit_tiny_patch16_224.augreg_in21k"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return dict(build_encoder(TINY, seed=9).state_dict())


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_starts_the_encoder_whatever_the_seed(
    tmp_path: Path, state: dict[str, torch.Tensor], suffix: str
) -> None:
    path = tmp_path / f"start.{suffix}"
    classifier = {"head.weight": torch.zeros(10, 192), "head.bias": torch.zeros(10)}
    if suffix == "safetensors":
        safetensors.torch.save_file({**state, **classifier}, path)
    else:
        torch.save({"state_dict": {**state, **classifier}, "args": argparse.Namespace(lr=1)}, path)
    encoder = build_encoder(TINY, seed=1, init=str(path))
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    assert not encoder.norm.weight.requires_grad
    assert encoder.pos_embed.requires_grad


def test_position_embeddings_are_resampled_to_another_grid_where_that_is_said(
    tmp_path: Path, state: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "start.safetensors"
    safetensors.torch.save_file(state, path)
    larger = EncoderSpec("vit_tiny_patch16_224", 48, 8)
    with pytest.raises(
        ConfigError, match=r"positions \(pos_embed\) are resampled from \(1, 17, 192\) to \(1, 37, 192\)"
    ):
        build_encoder(larger, seed=0, init=str(path))
    encoder = build_encoder(larger, seed=0, init=str(path), resample=("positions",))
    assert "are resampled from (1, 17, 192) to (1, 37, 192)" in caplog.text
    expected = resample_abs_pos_embed(state["pos_embed"], [6, 6], [4, 4])
    torch.testing.assert_close(encoder.pos_embed.detach(), expected)


def test_weights_that_do_not_fit_are_refused_with_both_shapes(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "start.safetensors"
    safetensors.torch.save_file({**state, "cls_token": torch.zeros(1, 1, 384)}, path)
    with pytest.raises(
        ConfigError, match=r"cls_token is \(1, 1, 384\) where the student has \(1, 1, 192\)\. Choose the"
    ):
        build_encoder(TINY, seed=0, init=str(path))
    safetensors.torch.save_file({**state, "extra": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match="do not fit the student: extra has no place"):
        build_encoder(TINY, seed=0, init=str(path))
    safetensors.torch.save_file({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match=r"cls_token is missing; pos_embed is missing; .* and \d+ more"):
        build_encoder(TINY, seed=0, init=str(path))


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--init .*gone\.pth: there is no such file"):
        build_encoder(TINY, seed=0, init=str(tmp_path / "gone.pth"))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(ConfigError, match=r"broken\.safetensors: it is damaged or not a safetensors file"):
        build_encoder(TINY, seed=0, init=str(broken))
    numbers = tmp_path / "numbers.pth"
    torch.save({"epoch": 3}, numbers)
    with pytest.raises(ConfigError, match=r"numbers\.pth: no tensors in it"):
        build_encoder(TINY, seed=0, init=str(numbers))


def test_pickled_code_in_a_weights_file_is_never_run(tmp_path: Path) -> None:
    witness, path = tmp_path / "ran", tmp_path / "evil.pth"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (witness,)

    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(ConfigError, match=r"evil\.pth: it holds pickled objects beyond tensors") as caught:
        build_encoder(TINY, seed=0, init=str(path))
    assert "Re-running" not in str(caught.value)  # as torch advises
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigError, match=r"evil\.pth: it is a Python pickle"):
        build_encoder(TINY, seed=0, init=str(path))
    assert not witness.exists()


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("nonsense", "--init 'nonsense' is neither a file nor a model that timm knows"),
        ("vit_tiny_patch16_224.nonsense", r"timm has no pretrained weights of that name; see timm.list_pretrained\(\)"),
        ("vit_base_patch32_plus_256", "timm has no pretrained weights of that name"),
    ],
)
def test_names_without_weights_are_refused(offline: None, init: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_weights(init, {})


@pytest.mark.timeout(20)  # the hub's client alone would retry for most of a minute
def test_without_internet_a_timm_name_fails_at_once_and_says_what_to_do(offline: None) -> None:
    with pytest.raises(ConfigError, match=r"neither found on this machine nor downloaded .* --init FILE\.safetensors"):
        read_weights(NAME, {})


def test_weights_that_the_hub_left_on_this_machine_need_no_internet(
    offline: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "model.safetensors"
    model = timm.create_model("vit_tiny_patch16_224")
    safetensors.torch.save_file(model.state_dict(), kept)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: str(kept))
    encoder = build_encoder(EncoderSpec("vit_tiny_patch16_224", 224, 16), seed=0, init=NAME)
    assert torch.equal(encoder.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight)


def test_another_patch_size_is_taken_only_where_it_is_said(
    tmp_path: Path, state: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    safetensors.torch.save_file(state, tmp_path / "start.safetensors")
    coarse = EncoderSpec("vit_tiny_patch16_224", 64, 16)  # the same grid of 4 x 4, so that positions fit as they are
    with pytest.raises(
        ConfigError, match=r"patches \(patch_embed\.proj\.weight\) .* or say --patch-size 16 to have it so"
    ):
        build_encoder(coarse, seed=0, init=str(tmp_path / "start.safetensors"), resample=("positions",))
    build_encoder(coarse, seed=0, init=str(tmp_path / "start.safetensors"), resample=("positions", "patches"))
    assert "patches (patch_embed.proj.weight) are resampled from (192, 3, 8, 8) to (192, 3, 16, 16)" in caplog.text


@pytest.mark.parametrize("prefix", ["_orig_mod.", "model.", "encoder.", "module.encoder.", "a.b.c."])
def test_prefixes_that_all_names_share_are_taken_off(
    tmp_path: Path, state: dict[str, torch.Tensor], prefix: str
) -> None:
    safetensors.torch.save_file({prefix + name: value for name, value in state.items()}, tmp_path / "p.safetensors")
    encoder = build_encoder(TINY, seed=1, init=str(tmp_path / "p.safetensors"))
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())


def test_another_networks_file_is_refused_with_its_own_names(tmp_path: Path) -> None:
    safetensors.torch.save_file({"layer1.conv.weight": torch.zeros(2, 2)}, tmp_path / "resnet.safetensors")
    with pytest.raises(ConfigError, match=r"The file's own names: layer1\.conv\.weight"):
        build_encoder(TINY, seed=0, init=str(tmp_path / "resnet.safetensors"))


def test_weights_that_nobody_trained_are_told(
    tmp_path: Path, state: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    safetensors.torch.save_file(state, tmp_path / "fresh.safetensors")
    build_encoder(TINY, seed=0, init=str(tmp_path / "fresh.safetensors"))
    assert "look like random weights, which nobody trained" in caplog.text
