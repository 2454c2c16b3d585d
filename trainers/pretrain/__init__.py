"""MiniPLM: a corpus in chunks, scores of two models, difference sampling, pre-training."""
