"""What `plan` measures, and its forecast."""
