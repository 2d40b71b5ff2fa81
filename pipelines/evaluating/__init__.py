"""The labelled images of an evaluation."""
