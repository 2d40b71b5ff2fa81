"""What the models see: shards, their index, and views as pure functions of integers."""
