"""Teachers outside timm: models of the hub and of folders, of transformers and open_clip, and your own modules."""
