"""What `shard` does with an unfinished folder."""
