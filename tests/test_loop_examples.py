"""The examples of a loop of one's own: each learns, and stopped and resumed in an epoch equals never stopped."""

import pytest
import torch

from unic_cache import FeatureDataset

STUDENT = {"student": "test_vit", "img_size": 32, "patch_size": 8}


@pytest.fixture
def given(cache_folder, shards):
    return {"cache": str(cache_folder), "shards": shards.pattern, "batch_size": 16, "threads": 1}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_plain_pytorch(given, tmp_path, capsys):
    from examples.pytorch_loop import train

    whole, parts = (str(tmp_path / name) for name in ("whole", "parts"))
    losses = train(**given, **STUDENT, epochs=2, checkpoint=whole)
    assert len(losses) == 12
    assert sum(losses[-4:]) < sum(losses[:4])
    stopped = train(**given, **STUDENT, epochs=2, checkpoint=parts, steps=8)
    assert stopped + train(**given, **STUDENT, epochs=2, checkpoint=parts) == losses
    one, other = (torch.load(file, weights_only=True) for file in (whole, parts))
    assert same(one["model"], other["model"])
    assert one["dataset"] == other["dataset"]
    assert train(**given, **STUDENT, epochs=2, checkpoint=parts) == []
    assert "epoch 1: loss" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated")  # lightning 2.6 with torch 2.15
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 with torch 2.15
@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*GPU available but not used")
@pytest.mark.filterwarnings("ignore:The `srun` command is available")
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(("unit", "whole", "part"), [("max_steps", 11, 8), ("max_epochs", 3, 2)])
def test_lightning(given, tmp_path, unit, whole, part):
    """Stopped inside an epoch, and at its end, where Lightning loads no loader's place."""
    lightning = pytest.importorskip("lightning")
    pytest.importorskip("torchdata")
    from examples.lightning_loop import Data, Distillation
    from examples.student import HeadedStudent

    def fit(until: int, resume: str | None = None) -> dict:
        torch.manual_seed(0)
        model = HeadedStudent("test_vit", FeatureDataset(**given), 32, 8)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        kept = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path / str(until), save_last=True)
        inside = {"enable_checkpointing": False} if unit == "max_steps" else {"callbacks": [kept]}
        trainer = lightning.Trainer(accelerator="cpu", default_root_dir=tmp_path, **{unit: until}, **inside, **quiet)
        module = Distillation(model)
        trainer.fit(module, Data(**given, img_size=32), ckpt_path=resume)
        if unit == "max_steps":
            trainer.save_checkpoint(tmp_path / str(until) / "last.ckpt")
        return module.state_dict()

    never_stopped = fit(whole)
    fit(part)
    assert same(never_stopped, fit(whole, str(tmp_path / str(part) / "last.ckpt")))


@pytest.mark.slow
def test_hugging_face_trainer(given, tmp_path):
    pytest.importorskip("transformers")
    from examples.trainer_loop import train

    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_strategy": "no"}
    settings = {"max_steps": 11, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 8, **quiet}
    whole = train(**given, **STUDENT, out=str(tmp_path / "whole"), settings=settings)
    again = {**given, **STUDENT, "resume": str(tmp_path / "whole/checkpoint-8")}
    resumed = train(**again, out=str(tmp_path / "resumed"), settings=settings)
    assert whole.state.global_step == resumed.state.global_step == 11
    assert same(whole.model.state_dict(), resumed.model.state_dict())
