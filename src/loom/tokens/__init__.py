"""Documents to token shards: the tokenizer, the shards, the reading order."""
