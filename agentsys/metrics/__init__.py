"""Metrics: corpus scores with confidence intervals, short answers, maths answers, terms in translations, lengths."""
