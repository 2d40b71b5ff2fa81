"""What an evaluation is about: labelled images."""
