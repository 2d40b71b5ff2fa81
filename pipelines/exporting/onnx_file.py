"""The encoder as one ONNX file: images of any batch size to its feature and patch tokens.

Its weights are inside, unless they exceed what protobuf holds. Metadata says how images are prepared. The file is
compared with the encoder in torch by onnxruntime, if that is installed.

Letters: B images, H and W pixels, C the 3 colours, T patch tokens, D channels.
"""

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipelines.command.failures import one_line
from pipelines.exporting.source import Source
from unic_cache.errors import ConfigError, UnicCacheError
from unic_cache.student.backbone import tokens

OPSET = 18
TOLERANCE = 1e-4  # largest difference from torch, of values up to 1; of larger ones, as a share of them
LARGEST = 2_000_000_000  # bytes of weights in one file: protobuf ends at 2 GiB
TRACED, CHECKED = 2, (1, 3)  # images in a batch
INSTALL = "install them with `pip install 'unic-cache[onnx]'`"
NOISY = ("torch.onnx", "onnxscript")  # loggers that tell what concerns nobody
IMAGES, OUTPUTS = "images", ("feature", "patch")

Arrays = Sequence[npt.NDArray[np.float32]]


class Outputs(nn.Module):
    """The evaluation feature (B, D) and the patch tokens (B, T, D')."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """See `unic_cache.student.backbone.tokens`."""
        return tokens(self.encoder, images_BCHW)


def onnx_bytes(source: Source) -> tuple[bytes, bool]:
    """(the file, whether onnxruntime compared it with torch).

    ConfigError if the encoder is too large for one file, or torch cannot export it; UnicCacheError if the file gives
    other values than torch.
    """
    size = sum(value.numel() * 4 for value in source.encoder.state_dict().values())
    if size > LARGEST:
        raise ConfigError(
            f"--format onnx: the encoder has {size / 1e9:.1f} GB of weights, and one ONNX file holds 2 GB; export it "
            "with --format timm"
        )
    model = Outputs(source.encoder).eval()
    data = described(converted(model, source.spec.img_size), source)
    if find_spec("onnxruntime") is None:
        return data, False
    check_equal(model, source.spec.img_size, onnxruntime_session(data))
    return data, True


def converted(model: nn.Module, img_size: int) -> Any:
    """The graph as onnx's ModelProto, with a free batch size, without traces of this machine."""
    images_BCHW = example(TRACED, img_size)
    levels = {log: log.level for log in map(logging.getLogger, NOISY)}
    try:
        for log in levels:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (images_BCHW,),
                dynamo=True,
                input_names=[IMAGES],
                output_names=list(OUTPUTS),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # whatever tracing and conversion raise
        raise ConfigError(
            f"--format onnx: torch cannot export this encoder ({type(error).__name__}: {one_line(str(error))[:300]}); "
            "export it with --format timm"
        ) from error
    finally:
        for log, level in levels.items():
            log.setLevel(level)
    assert program is not None
    return program.model_proto


def described(proto: Any, source: Source) -> bytes:
    """The file: the graph with metadata of its own, and none of the tracer's, which names files of this machine."""
    graph = proto.graph
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
        part.doc_string = ""
    for function in proto.functions:
        for node in (function, *function.node):
            del node.metadata_props[:]
            node.doc_string = ""
    spec = source.spec
    facts = {
        "input_size": [3, spec.img_size, spec.img_size],
        "mean": list(spec.mean),
        "std": list(spec.std),
        "architecture": spec.name,
        "grid": list(spec.grid),
        "provenance": source.provenance,
    }
    del graph.metadata_props[:], proto.metadata_props[:]
    graph.name, graph.doc_string, proto.doc_string = spec.name.partition(".")[0], "", ""
    proto.producer_name = "unic-cache"
    for name in sorted(facts):
        proto.metadata_props.add(key=name, value=json.dumps(facts[name], sort_keys=True))
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def onnxruntime_session(data: bytes) -> Callable[[npt.NDArray[np.float32]], Arrays]:
    """The file as a function, run by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(list(OUTPUTS), {IMAGES: images})


@torch.no_grad()
def check_equal(model: nn.Module, img_size: int, run: Callable[[npt.NDArray[np.float32]], Arrays]) -> None:
    """UnicCacheError unless `run` gives what the model gives in torch, on batches of several sizes."""
    for images in CHECKED:
        images_BCHW = example(images, img_size)
        wanted = [value.numpy() for value in model(images_BCHW)]
        for name, own, found in zip(OUTPUTS, wanted, run(images_BCHW.numpy()), strict=True):
            if own.shape != found.shape or not np.allclose(found, own, rtol=TOLERANCE, atol=TOLERANCE):
                worst = np.abs(found - own).max() if own.shape == found.shape else f"shape {found.shape}"
                raise UnicCacheError(
                    f"--format onnx: {name} of {images} images differs from torch by {worst}, more than {TOLERANCE}; "
                    "nothing was written. Try another release of torch, or --format timm"
                )


def example(images: int, img_size: int) -> Tensor:
    """Prepared images as noise, the same on every machine."""
    return torch.randn(images, 3, img_size, img_size, generator=torch.Generator().manual_seed(images))
