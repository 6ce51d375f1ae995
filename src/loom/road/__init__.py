"""Driving the stages: a training recipe with its progress line, and the quickstart, every stage in turn."""
