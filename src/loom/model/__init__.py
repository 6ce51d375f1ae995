"""The transformer: OLMo's architecture, its presets, initialisation, generation and weight map.

Nothing here knows of training, parallelism or run folders; torch and numpy are all it needs.
"""
