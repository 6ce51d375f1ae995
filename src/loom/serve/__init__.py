"""Use a model: continue text, talk in the terminal, serve it, the chat page."""
