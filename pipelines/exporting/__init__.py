"""The parts of `export`: what is exported, its files by format, the model card, and the hub."""
