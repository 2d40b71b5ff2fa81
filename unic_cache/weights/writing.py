"""safetensors files whose bytes depend on their content alone."""

import json
from collections.abc import Mapping

import safetensors.torch
from torch import Tensor

ALIGNMENT = 8  # bytes, of the tensors' data in the file


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A file of contiguous tensors on the CPU with these entries in its header, sorted by name.

    The library orders several entries anew in every process. They are therefore put into the header of the file that
    it makes without any. Offsets in that header count from its end, so they stay right.
    """
    plain = safetensors.torch.save(dict(tensors))
    size = int.from_bytes(plain[:8], "little")
    header = json.loads(plain[8 : 8 + size])
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(plain)[8 + size :]])
