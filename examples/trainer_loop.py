"""Distil from a cache with Hugging Face's Trainer, and go on at the exact batch after a stop.

    pip install transformers
    python -m examples.trainer_loop cache runs/trainer --student vit_small_patch16_224 --steps 10000

The dataset divides its images over the ranks itself, so its loader is not prepared by accelerate, which would divide
them again. Its place is kept beside each checkpoint; `ignore_data_skip` keeps the Trainer from skipping batches itself.
"""

import argparse
import json
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from examples.pytorch_loop import IMAGENET
from examples.student import HeadedStudent
from unic_cache import FeatureDataset

PLACE = "dataset.json"


class FeatureTrainer(Trainer):
    """A Trainer whose batches come from a FeatureDataset and whose model gives the loss of a batch."""

    def get_train_dataloader(self) -> DataLoader:
        """The dataset's own batches, without worker processes."""
        return DataLoader(self.train_dataset, batch_size=None)

    def compute_loss(self, model: torch.nn.Module, inputs: dict, **_: object) -> torch.Tensor:
        """The student's loss."""
        return model(inputs)


class KeepPlace(TrainerCallback):
    """Writes the dataset's place into each checkpoint, the same for all ranks."""

    def __init__(self, dataset: FeatureDataset) -> None:
        self.dataset = dataset

    def on_save(self, args: TrainingArguments, state: TrainerState, control: object, **_: object) -> None:  # noqa: ARG002
        """Write DIR/checkpoint-N/dataset.json."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero:
            (folder / PLACE).write_text(json.dumps(self.dataset.state_dict()))


def train(
    cache: str,
    out: str,
    *,
    student: str = "vit_small_patch16_224",
    img_size: int = 224,
    patch_size: int | None = None,
    batch_size: int = 256,
    resume: str | None = None,
    settings: dict,
    **data: object,
) -> FeatureTrainer:
    """Train, from the checkpoint `resume` if given; `settings` go to TrainingArguments, `data` to FeatureDataset."""
    torch.manual_seed(0)
    arguments = TrainingArguments(out, ignore_data_skip=True, **settings)  # this joins the processes
    dataset = FeatureDataset(cache, batch_size=batch_size, img_size=img_size, **IMAGENET, **data)
    if resume is not None:
        dataset.load_state_dict(json.loads((Path(resume) / PLACE).read_text()))
    model = HeadedStudent(student, dataset, img_size, patch_size)
    trainer = FeatureTrainer(model, arguments, train_dataset=dataset, callbacks=[KeepPlace(dataset)])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def main() -> None:
    """Parse the flags and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache")
    parser.add_argument("out")
    parser.add_argument("--shards", help="tars, if the cache does not keep its views")
    parser.add_argument("--student", default="vit_small_patch16_224")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--resume", help="a checkpoint's folder")
    given = vars(parser.parse_args())
    settings = {"max_steps": given.pop("steps"), "learning_rate": given.pop("lr"), "report_to": "none"}
    train(**given, settings=settings)


if __name__ == "__main__":
    main()
