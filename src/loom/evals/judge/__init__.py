"""Judges: of two answers, of one, of a file of answers; by replay, classifier, causal model or endpoint."""
