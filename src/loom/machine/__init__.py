"""What a run needs of machines, reckoned before one is asked for, and whether this one is fit to train on."""
