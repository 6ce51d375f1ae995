"""Raw text becomes a curated corpus: documents, taggers, deduplication, decontamination, mixing.

Documents are never edited before `mix`; every step before it writes attributes beside them.
"""
