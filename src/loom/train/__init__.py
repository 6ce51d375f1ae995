"""One training loop for pretraining, supervised tuning and preference tuning.

Needs torch and numpy only, shards included, so that it runs on a bare machine with a GPU.
"""
