"""The checks of `verify`."""
