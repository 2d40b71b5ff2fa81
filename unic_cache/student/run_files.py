"""File names in a run's folder, OUT."""

CONFIG = "config.json"  # the run's settings, and timm's description of its encoder
SNAPSHOT = "snapshot.json"  # what it trains on
CHECKPOINT = "checkpoint.safetensors"
OLDER = "checkpoint-*.safetensors"  # those kept besides the newest
ENCODER = "encoder.safetensors"  # the exported student
MODEL = "model.safetensors"  # the name by which timm and transformers look for it: in a run a link to it
LOG = "log.jsonl"
CURVE = "loss.png"

TIMM_KEYS = frozenset({"architecture", "num_classes", "num_features", "model_args", "pretrained_cfg"})  # of config.json
