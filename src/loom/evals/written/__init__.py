"""Evaluations in which the model writes: what it is asked, what it answers, files as the upstream programs have them."""
