"""Compiled loops over text bytes: no policy in here, only counts and positions.

Every kernel takes the UTF-8 buffer and the offsets of a text column, releases the GIL, and is compiled
once a machine (`loom.native`).
"""
