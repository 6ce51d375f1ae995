"""Records -> one self-contained page."""
