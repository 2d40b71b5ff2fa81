"""What learns: any timm ViT, the ladder of expendable projectors, and the loss."""
