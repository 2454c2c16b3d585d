"""Metrics: short answers, maths answers, corpus scores of translations, lengths, terms."""
