"""What it is worth: k-NN on frozen features, and the report."""
