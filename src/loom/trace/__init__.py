"""The thread: from an answer to the documents it echoes, from a step to the documents in it."""
