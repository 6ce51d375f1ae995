"""What is in a corpus: sixteen analyses, each a map over batches, a merge of partial results, a finish."""
