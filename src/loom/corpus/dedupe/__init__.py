"""Duplicates: exact documents and paragraphs, and near-duplicates by MinHash.

Who survives is decided by the order of the input, never by scheduling.
"""
