"""The teachers known by name, as data: families of presets. A family has what its rows share, a row what differs."""
