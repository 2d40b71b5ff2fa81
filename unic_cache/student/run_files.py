"""The names of the files in a run's folder, OUT."""

CONFIG = "config.json"  # what the run was asked for
SNAPSHOT = "snapshot.json"  # what it trains on
CHECKPOINT = "checkpoint.safetensors"
ENCODER = "encoder.safetensors"  # the exported student
LOG = "log.jsonl"
CURVE = "loss.png"
