"""What the models see: shards, their index, and views that are pure functions of their inputs."""
