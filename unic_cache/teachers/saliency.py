"""The saliency ViT's ONNX export to timm's names, by following its graph.

The export names biases, norms and scales (`backbone.encoder.layer.3.mlp.fc1.bias`), but not its matrices: `x @ W + b`
is MatMul(x, W) into Add(b, .), with W of shape (in, out). So each named bias leads to the Add that reads it, and that
to its MatMul; W transposed is the weight of a Linear. Query, key and value are concatenated into timm's `qkv`. The
graph's first Resize reads the patch positions; a Concat joins its result with the class token's position.
"""

from pathlib import Path
from typing import Any

import torch

from unic_cache.errors import TeacherError

DEPTH = 12
LAYER = "backbone.encoder.layer"
LINEARS = {"attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
NAMED = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
STEM = {
    "cls_token": "backbone.embeddings.cls_token",
    "patch_embed.proj.weight": "backbone.embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "backbone.embeddings.patch_embeddings.projection.bias",
    "norm.weight": "backbone.layernorm.weight",
    "norm.bias": "backbone.layernorm.bias",
}


def read_onnx(path: Path) -> dict[str, torch.Tensor]:
    """The encoder's tensors under timm's names (`vit_small_patch14_dinov2`), without the decoder.

    TeacherError without the `onnx` package, for a file that is not an ONNX model, or for another model's graph.
    """
    try:
        import onnx
    except ImportError as error:
        raise TeacherError("reading .onnx weights needs the package onnx: pip install 'unic-cache[demo]'") from error
    try:
        return _encoder(_Graph(onnx.load(str(path)).graph, onnx.numpy_helper.to_array))
    except (KeyError, StopIteration) as error:
        raise TeacherError(f"weights file {path}: not the graph of the saliency ViT (no {error})") from error
    except TeacherError:
        raise
    except Exception as error:  # protobuf's decode error has no public name of its own
        raise TeacherError(f"weights file {path}: it is damaged or not an ONNX file ({error})") from error


class _Graph:
    """Initializers by name, and the nodes that make and read each value."""

    def __init__(self, graph: Any, to_array: Any) -> None:
        self.tensors = {t.name: torch.from_numpy(to_array(t).copy()) for t in graph.initializer}
        self.maker = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def first(self, op: str, nodes: Any) -> Any:
        found = next((node for node in nodes if node.op_type == op), None)
        if found is None:
            raise KeyError(op)
        return found

    def linear_weight(self, bias: str) -> torch.Tensor:
        """(out, in): the matrix of the product to which an Add adds `bias`."""
        add = self.first("Add", self.readers[bias])
        matmul = self.first("MatMul", (self.maker[name] for name in add.input if name in self.maker))
        return self.tensors[matmul.input[1]].T.contiguous()

    def constant_behind(self, value: str) -> str:
        """The initializer at the end of the chain of first inputs behind `value`."""
        while value not in self.tensors:
            value = self.maker[value].input[0]
        return value


def _encoder(graph: _Graph) -> dict[str, torch.Tensor]:
    state = {ours: graph.tensors[theirs] for ours, theirs in STEM.items()}
    state["pos_embed"] = _positions(graph)
    for block in range(DEPTH):
        ours, theirs = f"blocks.{block}", f"{LAYER}.{block}"
        state |= {f"{ours}.{key}": graph.tensors[f"{theirs}.{name}"] for key, name in NAMED.items()}
        for key, name in LINEARS.items():
            state[f"{ours}.{key}.weight"] = graph.linear_weight(f"{theirs}.{name}.bias")
            state[f"{ours}.{key}.bias"] = graph.tensors[f"{theirs}.{name}.bias"]
        qkv = [f"{theirs}.attention.attention.{name}.bias" for name in ("query", "key", "value")]
        state[f"{ours}.attn.qkv.weight"] = torch.cat([graph.linear_weight(bias) for bias in qkv])
        state[f"{ours}.attn.qkv.bias"] = torch.cat([graph.tensors[bias] for bias in qkv])
    return state


def _positions(graph: _Graph) -> torch.Tensor:
    """(1, 1 + 37 * 37, 384): the position of the class token, then those of the grid before resizing."""
    resize = graph.first("Resize", graph.maker.values())
    patches = graph.constant_behind(resize.input[0])
    for node in graph.maker.values():
        if node.op_type == "Concat" and node.input[0] in graph.tensors and len(node.input) == 2:
            first, rest = node.input
            if rest in graph.maker and graph.constant_behind(rest) == patches:
                return torch.cat([graph.tensors[first], graph.tensors[patches]], dim=1)
    raise KeyError("Concat")
