"""Evaluation: one scorer, the metrics that follow from it, perplexity, judges; in the loop and after it."""
