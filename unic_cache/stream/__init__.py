"""Views and features in training order, read ahead."""
