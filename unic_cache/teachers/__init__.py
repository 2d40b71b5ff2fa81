"""What to imitate: a catalog of teachers as data, and the frozen timm models behind it."""
