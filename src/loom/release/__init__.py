"""Hugging Face folders out and in, model card, push."""
