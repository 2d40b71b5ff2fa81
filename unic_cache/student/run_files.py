"""File names in a run's folder, OUT."""

CONFIG = "config.json"  # the run's settings
SNAPSHOT = "snapshot.json"  # what it trains on
CHECKPOINT = "checkpoint.safetensors"
ENCODER = "encoder.safetensors"  # the exported student
LOG = "log.jsonl"
CURVE = "loss.png"
