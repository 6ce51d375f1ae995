"""Dolma's own configuration files, run unchanged: its JSONPath and jq filters, its mixer, its deduper.

Under `--compat dolma-1.2` the output is Dolma's byte for byte, leaks and all; without it the mended rules
apply and every document that came out differently is counted.
"""
