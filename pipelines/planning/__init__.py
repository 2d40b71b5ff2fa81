"""What `plan` measures and forecasts."""
