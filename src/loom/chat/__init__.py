"""Conversations: their format, their masks, preference pairs, packing."""
