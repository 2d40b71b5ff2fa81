"""The student: any timm ViT, the ladder of projectors that is thrown away after training, and the loss."""
