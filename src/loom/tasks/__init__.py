"""Evaluation tasks: rows to items. No torch: evaluation, survey and decontamination all read them."""
