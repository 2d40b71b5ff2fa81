"""What `shard` does with a folder that it did not finish."""
