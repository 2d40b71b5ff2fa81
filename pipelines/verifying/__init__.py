"""What `verify` compares a cache with."""
