"""k-NN on frozen features, and its report."""
