"""The cache on disk: standardized features in plain Zarr, checked by commit records."""
