"""What is kept: standardized features in plain Zarr, vouched for by commit records."""
