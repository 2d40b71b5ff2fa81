"""Training a student: its data, one step, and the files of a run."""
