"""File names in a run's folder, OUT."""

from pathlib import Path

CONFIG = "config.json"  # the run's settings, and timm's description of its encoder
SNAPSHOT = "snapshot.json"  # what it trains on
CHECKPOINT = "checkpoint.safetensors"
OLDER = "checkpoint-*.safetensors"  # those kept besides the newest
ENCODER = "encoder.safetensors"  # the exported student
MODEL = "model.safetensors"  # the name by which timm and transformers look for it: in a run a link to it
LOG = "log.jsonl"
CURVE = "loss.png"

TIMM_KEYS = frozenset({"architecture", "num_classes", "num_features", "model_args", "pretrained_cfg"})  # of config.json


def older_checkpoints(out: Path) -> list[Path]:
    """The checkpoints that are kept beside the newest, the last one first."""
    return sorted((path for path in out.glob(OLDER) if steps_of(path) >= 0), key=steps_of, reverse=True)


def steps_of(path: Path) -> int:
    """The steps in the name of an older checkpoint; -1 if there are none."""
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1
