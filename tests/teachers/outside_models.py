"""Small random models of transformers and open_clip, saved as on the hub, for several test files."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

PIXELS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25], "size": {"height": 56, "width": 56}}
MEAN, STD = (torch.tensor(PIXELS[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56, "patch_size": 14,
    "intermediate_size": 64,
}  # fmt: skip


def views(size: int = 56, count: int = 2) -> torch.Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=draws)


def normalised(views_BHWC: torch.Tensor) -> torch.Tensor:
    return (views_BHWC.permute(0, 3, 1, 2) / 255 - MEAN) / STD


def shaken(model):
    """The model with no value left that initialisation sets to 0 or 1."""
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for values in model.parameters():
            values.add_(0.1 * torch.randn(values.shape, generator=draws))
    return model.eval()


def save(folder: Path, model, pixels=PIXELS) -> Path:
    """A model of transformers as its own save_pretrained writes it, with a processor's file."""
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder


def save_timm(folder: Path, model, arch: str, size: int = 64, **more) -> Path:
    """A timm model in timm's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {
        "tag": "ours", "input_size": [3, size, size], "fixed_input_size": True, "mean": PIXELS["image_mean"],
        "std": PIXELS["image_std"], "classifier": "head", "license": "ours-1.0",
    }  # fmt: skip
    config = {"architecture": arch, "num_classes": 0, "pretrained_cfg": said, **more}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def on_hub(cache: Path, repo: str, commit: str, ref: str = "main") -> Path:
    """The folder of a commit in the hub's cache, to be filled."""
    base = cache / f"models--{repo.replace('/', '--')}"
    (base / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
    (base / "refs" / ref).write_text(commit)
    folder = base / "snapshots" / commit
    folder.mkdir(parents=True)
    return folder
