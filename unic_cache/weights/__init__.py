"""Files of weights, and how they fit a model."""
