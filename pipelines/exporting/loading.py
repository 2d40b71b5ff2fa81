"""How an export is loaded, by its format: the code of the model card, and the line that the command prints."""

from collections.abc import Callable

from unic_cache.student.backbone import EncoderSpec, anatomy
from unic_cache.student.timm_layout import folder_line

HUB = "hf-hub:"
ONNX = "model.onnx"


def line(form: str, where: str) -> str:
    """One line of Python that loads it, from a folder, or from the hub if `where` has that prefix."""
    local = where.removeprefix(HUB)
    lines = {
        "timm": f"timm.create_model({where!r}, pretrained=True)" if where.startswith(HUB) else folder_line(where),
        "hf": f"transformers.AutoModel.from_pretrained({local!r})",
        "onnx": f"onnxruntime.InferenceSession({f'{local}/{ONNX}'!r})",
        "heads": f"unic_cache.load_heads({local!r})",
    }
    return lines[form]


def _fetched(where: str) -> str:
    """Lines that fetch a folder from the hub, and its name."""
    if not where.startswith(HUB):
        return f"folder = {where!r}"
    return f"from huggingface_hub import snapshot_download\n\nfolder = snapshot_download({where.removeprefix(HUB)!r})"


def _timm(_spec: EncoderSpec, where: str, _checked: bool) -> str:
    return f"""```python
import timm
import torch

model = {line("timm", where)}.eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.inference_mode():
    feature = model(transform(image).unsqueeze(0))  # of a PIL image: (1, D)
```

`pretrained=True` loads the weights: without it timm makes the network untrained, and does not say so. For training on
labels add `num_classes=N`."""


def _hf(spec: EncoderSpec, where: str, checked: bool) -> str:
    local = where.removeprefix(HUB)
    return f"""```python
import torch
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained({local!r})
model = AutoModel.from_pretrained({local!r}).eval()
with torch.inference_mode():
    found = model(**processor(image, return_tensors="pt"))  # of a PIL image
feature, last = found.pooler_output, found.last_hidden_state
```

`last` has all tokens of a ViT, its class and register tokens first; of a network with maps it is the last map.

transformers runs timm's network (`pip install timm`). timm alone:

{_timm(spec, where, checked)}"""


def _onnx(spec: EncoderSpec, where: str, checked: bool) -> str:
    mean, std, (rows, columns), own = list(spec.mean), list(spec.std), spec.grid, anatomy(spec)
    proof = (
        "onnxruntime gave the same values as torch to 1e-4 when this was exported."
        if checked
        else "It was not compared with torch: onnxruntime was not installed when this was exported."
    )
    return f"""```python
{_fetched(where)}
import onnxruntime

session = onnxruntime.InferenceSession(f"{{folder}}/{ONNX}")
feature, patch = session.run(["feature", "patch"], {{"images": images}})
```

The feature is (B, {own.feature}), and the patch tokens (B, {rows * columns}, {own.widths[-1][1]}), on a grid of
{rows} x {columns}.

`images` is float32 (B, 3, {spec.img_size}, {spec.img_size}), B any number: RGB in [0, 1], resized bicubically
with antialiasing, less the mean {mean}, over the std {std}. The file's metadata says so too.
{proof}"""


def _heads(spec: EncoderSpec, where: str, checked: bool) -> str:
    return f"""With its projectors it guesses each teacher's tokens, in the teacher's own scale (by unic-cache):

```python
import timm
import torch
import unic_cache

{_fetched(where)}
heads = unic_cache.load_heads(folder)
transform = timm.data.create_transform(**heads.data_config)
with torch.inference_mode():
    guesses = heads(transform(image).unsqueeze(0))  # {{teacher: {{"cls": (1, P), "patch": (1, T, P)}}}} of a PIL image
```

The encoder alone:

{_timm(spec, where, checked)}"""


SNIPPETS: dict[str, Callable[[EncoderSpec, str, bool], str]] = {
    "timm": _timm,
    "hf": _hf,
    "onnx": _onnx,
    "heads": _heads,
}
