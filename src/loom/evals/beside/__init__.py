"""Evaluations side by side: compared by document, in one table, with what others published."""
