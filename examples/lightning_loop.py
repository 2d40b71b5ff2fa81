"""Distil from a cache with Lightning, on any number of devices, and go on at the exact batch after a stop.

    pip install lightning torchdata
    python -m examples.lightning_loop cache --student vit_small_patch16_224 --epochs 100

The loader is made in a hook, when Lightning has started its processes: then FeatureDataset knows its rank. Lightning
keeps the state of torchdata's StatefulDataLoader in its checkpoints, and with it the dataset's place.
"""

import argparse

import lightning
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from examples.pytorch_loop import IMAGENET
from examples.student import HeadedStudent
from unic_cache import FeatureDataset


class Data(lightning.LightningDataModule):
    """Batches of a cache; `data` goes to FeatureDataset."""

    def __init__(self, cache: str, batch_size: int, img_size: int, **data: object) -> None:
        super().__init__()
        self.given = {"cache": cache, "batch_size": batch_size, "img_size": img_size, **IMAGENET, **data}

    def train_dataloader(self) -> StatefulDataLoader:
        """A loader of this process's share, without worker processes."""
        dataset = FeatureDataset(**self.given)
        # A checkpoint at an epoch's end counts that epoch here; of others, Lightning loads the loader's place.
        dataset.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
        return StatefulDataLoader(dataset, batch_size=None)


class Distillation(lightning.LightningModule):
    """A student, its loss and its optimizer."""

    def __init__(self, model: HeadedStudent, lr: float = 1e-3) -> None:
        super().__init__()
        self.model, self.lr = model, lr

    def training_step(self, batch: dict) -> torch.Tensor:
        """The loss of a batch."""
        loss = self.model(batch)
        self.log("loss", loss, batch_size=len(batch["key"]), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.03)


def main() -> None:
    """Parse the flags and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache")
    parser.add_argument("--shards", help="tars, if the cache does not keep its views")
    parser.add_argument("--student", default="vit_small_patch16_224")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--resume", help="a checkpoint of Lightning")
    given = parser.parse_args()
    torch.manual_seed(0)
    kinds = FeatureDataset(given.cache, batch_size=1, images=False, rank=0, world=1)
    model = HeadedStudent(given.student, kinds, given.img_size)
    data = Data(given.cache, given.batch_size, given.img_size, shards=given.shards)
    trainer = lightning.Trainer(max_epochs=given.epochs, use_distributed_sampler=False)
    trainer.fit(Distillation(model), data, ckpt_path=given.resume)


if __name__ == "__main__":
    main()
