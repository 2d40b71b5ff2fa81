"""Reads a file of weights without unpickling objects; its first bytes, not its name, decide what it is.

Failed downloads, pointers, archives and other frameworks' files come under the names of weights. The error names each,
with what to do about it.
"""

import argparse
import json
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from unic_cache.errors import WeightsError

HEAD = 1024  # bytes that decide
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # first bytes of torch.save before 1.6
AGAIN = "download it again"
CONVERT = (  # one line for a shell, in which {} is the file
    'if you trust it, convert its tensors where torch may run its code: python -c "import torch; '
    "x = torch.load('{0}', 'cpu', weights_only=False); "
    "torch.save(x.get('model') or x.get('state_dict') or x.get('teacher') or x, '{0}.tensors')\""
)
PICKLE = (
    "it is a Python pickle, not a torch.save file; it is refused, since unpickling can run any code; if you trust it, "
    "unpickle it elsewhere and save its tensors with torch.save"
)
SHARDED = "it is the index of weights in several files; join them into one .safetensors file first"
KNOWN_FILES = ("model.safetensors", "pytorch_model.bin", "encoder.safetensors", "model.pth", "checkpoint.pth")

ONNX, HDF5 = "onnx", "hdf5"  # kinds of files that need a reader made for the network
NO_READERS: Mapping[str, Callable[[Path], Any]] = {}
HDF5_HEAD = b"\x89HDF\r\n\x1a\n"
FOREIGN = {  # first bytes -> what the file is
    b"version https://git-lfs": "a git-lfs pointer, not the weights: run `git lfs pull` where it came from",
    b"\x1f\x8b": "a gzip archive; unpack it and give the file in it",
    b"BZh": "a bzip2 archive; unpack it and give the file in it",
    b"\xfd7zXZ": "an xz archive; unpack it and give the file in it",
    b"(\xb5/\xfd": "a zstd archive; unpack it and give the file in it",
    b"7z\xbc\xaf": "a 7z archive; unpack it and give the file in it",
    b"Rar!": "a rar archive; unpack it and give the file in it",
    b"\x93NUMPY": "a numpy array; save a state dict (names to tensors) as .safetensors",
    HDF5_HEAD: "an HDF5 file (Keras, TensorFlow); only PyTorch's and safetensors files are read",
    b"GGUF": "a GGUF file; only PyTorch's and safetensors files are read",
    b"%PDF": f"a PDF, not weights; {AGAIN}",
    b"\x89PNG": f"a PNG picture, not weights; {AGAIN}",
    b"\xff\xd8\xff": f"a JPEG picture, not weights; {AGAIN}",
    b"\x7fELF": "a program, not weights",
}


def read_checkpoint(path: Path, readers: Mapping[str, Callable[[Path], Any]] = NO_READERS) -> Any:
    """What torch.save or safetensors wrote to a file of weights; `readers` read ONNX and HDF5, refused without them.

    WeightsError if the file is missing, of another kind, cut off, or holds pickled objects beyond tensors.
    """
    head = b""
    try:
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(HEAD)
    except OSError as error:
        raise WeightsError(f"weights file {path}: it cannot be read: {error.strerror or error}") from error
    refusal = next((why for why in _refusals(path, head, readers.keys()) if why is not None), None)
    if refusal is not None:
        raise WeightsError(f"weights file {path}: {refusal}")
    if _is_safetensors(head):
        return _safetensors(path)
    if head.startswith(HDF5_HEAD):
        return readers[HDF5](path)
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] in {b"\x12", b"\x3a"}):
        if ONNX not in readers:
            raise WeightsError(
                f"weights file {path}: it is an ONNX graph, but only PyTorch and safetensors files are read here; "
                "export the model's state_dict"
            )
        return readers[ONNX](path)
    return _torch(path)


class Ignored:
    """What a numpy array or number in a checkpoint becomes: nothing. No code of numpy's runs, and no value is kept."""

    def __init__(self, *_values: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


IGNORED = [  # schedules and scores that trainers leave beside the tensors
    (Ignored, f"numpy.{name}")
    for name in (
        "ndarray",
        "dtype",
        *(f"{core}.multiarray.{made}" for core in ("core", "_core") for made in ("_reconstruct", "scalar")),
        *(f"dtypes.{kind}DType" for kind in ("Float16", "Float32", "Float64", "Int32", "Int64", "Bool")),
    )
]


def _refusals(path: Path, head: bytes, readable: Collection[str]) -> Iterator[str | None]:
    """What a path is if it cannot hold weights, and what to do; None for what it is not. The first one counts."""
    if path.is_dir():
        yield _folder(path)
    if not path.is_file():
        yield _absent(path)
    yield None if head else f"it is empty; {AGAIN}"
    if not (HDF5 in readable and head.startswith(HDF5_HEAD)):
        yield next((f"it is {what}" for first, what in FOREIGN.items() if head.startswith(first)), None)
    yield "it is a tar archive; unpack it and give the file in it" if head[257:262] == b"ustar" else None
    if head.startswith(b"PK\x03\x04"):
        yield _zip(path)
    yield PICKLE if re.match(rb"\x80[\x02-\x05]", head) and not head.startswith(LEGACY) else None
    yield _cut_off(path) if _is_safetensors(head) else _text(path, head)


def _folder(path: Path) -> str:
    inside = next((name for name in KNOWN_FILES if (path / name).is_file()), None)
    if inside is not None:
        return f"it is a folder; give the file {path / inside}"
    return SHARDED if list(path.glob("*.index.json")) else "it is a folder; give the file of weights"


def _absent(path: Path) -> str:
    text = str(path)
    if re.match(r"[a-z0-9]+:/", text):
        return "weights are read from files on this machine; download it first"
    if text.startswith("~"):
        return f"there is no such file ('~' was not expanded; say {path.expanduser()})"
    near = sorted(path.parent.glob(f"{path.stem}.*")) if path.parent.is_dir() and path.stem else []
    return f"there is no such file{f'; there is {near[0]}' if near else ''}"


def _zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        size = path.stat().st_size
        return f"it is damaged or not a PyTorch file: a zip file without its end ({size:,} bytes here); {AGAIN}"
    if any(name.endswith("/constants.pkl") for name in names):
        return "it is a TorchScript program; save its state_dict() with torch.save, and give that file"
    if any(name.endswith("data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "it is a numpy .npz archive; save a state dict (names to tensors) as .safetensors"
    return f"it is a zip archive of other things ({', '.join(names[:3])}); unpack it and give the file in it"


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 1 << 32


def _cut_off(path: Path) -> str | None:
    """What is wrong with a safetensors file's length, by its own header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 8 + length <= size else b""
    try:
        header = json.loads(text)
        needed = 8 + length + max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        needed = 8 + length
        if needed <= size:
            return f"it is damaged or not a safetensors file (its header is no JSON of tensors); {AGAIN}"
    if needed > size:
        return (
            f"it is damaged or not a safetensors file: {size:,} bytes of the {needed:,} that its header says; {AGAIN}"
        )
    return None


def _text(path: Path, head: bytes) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = start.lower()
    if lower.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        return f"it is a web page, not the weights: the link needs a login or leads to a viewer; {AGAIN}"
    if start.startswith((b"<?xml", b"<Error")):
        code = re.search(rb"<Code>([^<]*)</Code>", head)
        why = f" that says {code[1].decode(errors='replace')}" if code else ""
        return f"it is an XML answer of a server{why}, not the weights; {AGAIN}"
    if path.name.endswith(".index.json") or (start.startswith(b"{") and b'"weight_map"' in head):
        return SHARDED
    shown = start[:60].decode(errors="replace").partition("\n")[0]
    if start.startswith((b"{", b"[")) and shown.isprintable():
        return f"it is JSON text, not weights: {shown}"
    if head.isascii() and not any(byte < 9 or 13 < byte < 32 for byte in head):
        return f"it is text, not weights: {shown!r}; {AGAIN}"
    return None


def _safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # safetensors' own errors, and torch's for odd types in the header
        raise WeightsError(
            f"weights file {path}: it is damaged or not a safetensors file ({error}); {AGAIN}"
        ) from error


def _torch(path: Path) -> Any:
    try:
        # an open file: given a path, torch decides by the name
        with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace, *IGNORED]):
            return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load documents no errors; damaged files raise various ones
        raise WeightsError(f"weights file {path}: {_why_unread(error, path)}") from error


def _why_unread(error: Exception, path: Path) -> str:
    found = re.search(r"(?:Unsupported \w+|GLOBAL|Trying to call reduce for|instantiate)[^.\n]*", str(error))
    if found is None or "operand" in found[0].lower():
        return (
            f"it is damaged or not a PyTorch file ({type(error).__name__}: {str(error).partition(chr(10))[0][:120]}); "
            f"{AGAIN}"
        )
    return (
        f"it holds pickled objects beyond tensors ({found[0][:120]}) and is refused, since unpickling can run "
        f"any code; {CONVERT.format(path)}"
    )
