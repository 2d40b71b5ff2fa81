"""What a file of weights is, by its bytes: each other thing is named truly, with what to do about it."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from unic_cache.errors import WeightsError
from unic_cache.weights.file import read_checkpoint

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def packed(kind: str) -> bytes:
    """One file in an archive."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("model/teacher.pth", b"weights")
    elif kind == "npz":
        np.savez(buffer, a=np.ones(2))
    elif kind == "npy":
        np.save(buffer, np.ones(2))
    elif kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("teacher.pth"))
    elif kind == "script":
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
                archive.writestr(f"model/{name}", b"")
    return buffer.getvalue()


FOREIGN = {
    "git-lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        r"git-lfs .*`git lfs pull`",
    ),
    "web page": (b"\n <!doctype HTML><html><body>Sign in", r"it is a web page, .* download it again"),
    "page without a type": (b"\xef\xbb\xbf<HTML lang=en>", r"it is a web page"),
    "answer of a store": (
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        r"XML answer of a server that says AccessDenied",
    ),
    "JSON answer": (b'{"error": "Repository not found"}', r"it is JSON text, not weights: \{\"error\": \"Repository"),
    "empty": (b"", r"it is empty"),
    "gzip": (b"\x1f\x8b\x08\x00aaaa", r"it is a gzip archive; unpack it"),
    "zstd": (b"(\xb5/\xfdaaaa", r"it is a zstd archive"),
    "keras": (b"\x89HDF\r\n\x1a\n", r"it is an HDF5 file \(Keras"),
    "gguf": (b"GGUF\x03\x00", r"it is a GGUF file"),
    "picture": (b"\x89PNG\r\n\x1a\n", r"it is a PNG picture, not weights"),
    "graph": (b"\x08\x07\x12\x07pytorch\x1a", r"it is an ONNX graph, .* export the model's state_dict"),
    "pickle": (b"\x80\x04\x95\x10\x00\x00", r"it is a Python pickle, not a torch\.save file; it is refused"),
    "words": (b"404: Not Found", r"it is text, not weights: '404: Not Found'"),
    "zip": (packed("zip"), r"it is a zip archive of other things \(model/teacher\.pth\); unpack it"),
    "npz": (packed("npz"), r"it is a numpy \.npz archive"),
    "npy": (packed("npy"), r"it is a numpy array"),
    "script": (packed("script"), r"it is a TorchScript program; save its state_dict"),
    "tar": (packed("tar"), r"it is a tar archive; unpack it"),
}


@pytest.mark.parametrize("name", ["teacher.pth", "teacher.safetensors"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_checkpoint_is_called_what_it_is_whatever_its_name(tmp_path, kind, name):
    content, message = FOREIGN[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        read_checkpoint(tmp_path / name)
    assert name in str(caught.value)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_download_that_was_cut_off_is_called_that(tmp_path, kind, share):
    path = tmp_path / "teacher.bin"
    state = {"a": torch.randn(60, 60)}
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(WeightsError, match=r"it is damaged or not a .* download it again"):
        read_checkpoint(path)


def test_how_many_bytes_a_safetensors_file_lacks_is_said(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[:-4])
    with pytest.raises(WeightsError, match=rf"{len(data) - 4:,} bytes of the {len(data):,} that its header says"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_a_folder_names_the_file_in_it_and_an_index_its_parts(tmp_path):
    with pytest.raises(WeightsError, match=r"it is a folder; give the file of weights"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001.safetensors"}}))
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        with pytest.raises(WeightsError, match=r"it is the index of weights in several files; join them"):
            read_checkpoint(path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"it is a folder; give the file .*/pytorch_model\.bin"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s3://bucket/teacher.pth", "read from files on this machine; download it first"),
        ("https://example.org/teacher.pth", "download it first"),
        ("~/teacher.pth", r"there is no such file \('~' was not expanded; say /"),
    ],
)
def test_places_that_are_no_files_here_are_told(path, message):
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(Path(path))


def test_a_near_name_is_offered(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "teacher.safetensors")
    with pytest.raises(WeightsError, match=r"there is no such file; there is .*teacher\.safetensors"):
        read_checkpoint(tmp_path / "teacher.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w", "w.ckpt"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_content_decides_and_the_name_does_not(tmp_path, kind, name):
    if kind == "safetensors":
        safetensors.torch.save_file(STATE, tmp_path / name)
    else:
        torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=kind == "zip")
    read = read_checkpoint(tmp_path / name)
    assert all(torch.equal(read[key], STATE[key]) for key in STATE)
