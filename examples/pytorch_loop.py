"""Distil from a cache in plain PyTorch, and go on at the exact batch after a stop.

python -m examples.pytorch_loop cache --student vit_small_patch16_224 --epochs 100 --device cuda
"""

import argparse
from pathlib import Path

import torch

from examples.student import HeadedStudent
from unic_cache import FeatureDataset

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def train(
    cache: str,
    *,
    student: str = "vit_small_patch16_224",
    img_size: int = 224,
    patch_size: int | None = None,
    batch_size: int = 256,
    epochs: int = 100,
    lr: float = 1e-3,
    device: str = "cpu",
    checkpoint: str = "checkpoint.pt",
    save_every: int = 1000,
    steps: int | None = None,
    **data: object,
) -> list[float]:
    """Train, from `checkpoint` if that exists, and return the losses; `data` goes to FeatureDataset.

    Stops after `steps` steps if given. A checkpoint is written every `save_every` steps and at the end.
    """
    torch.manual_seed(0)
    dataset = FeatureDataset(cache, batch_size=batch_size, img_size=img_size, device=device, **IMAGENET, **data)
    model = HeadedStudent(student, dataset, img_size, patch_size).to(device)
    adamw = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.03)
    parts = {"model": model, "optimizer": adamw, "dataset": dataset}
    if Path(checkpoint).exists():
        for name, state in torch.load(checkpoint, weights_only=True).items():
            parts[name].load_state_dict(state)

    losses: list[float] = []
    while (epoch := dataset.state_dict()["epoch"]) < epochs and (steps is None or len(losses) < steps):
        for batch in dataset:
            loss = model(batch)
            loss.backward()
            adamw.step()
            adamw.zero_grad(set_to_none=True)
            losses.append(loss.item())
            if len(losses) % save_every == 0 or len(losses) == steps:
                save(parts, checkpoint)
            if len(losses) == steps:
                break
        print(f"epoch {epoch}: loss {losses[-1]:.4f}")
    save(parts, checkpoint)
    return losses


def save(parts: dict, checkpoint: str) -> None:
    """Write the state of all parts, in one piece."""
    torch.save({name: part.state_dict() for name, part in parts.items()}, f"{checkpoint}.new")
    Path(f"{checkpoint}.new").replace(checkpoint)


def main() -> None:
    """Parse the flags and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache")
    parser.add_argument("--shards", help="tars, if the cache does not keep its views")
    parser.add_argument("--student", default="vit_small_patch16_224")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoint", default="checkpoint.pt")
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
