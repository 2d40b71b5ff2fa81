"""Views and features in the order of training, read ahead of need."""
