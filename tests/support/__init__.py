"""Helpers of the tests: servers, scripted replies, tiny models, small corpora."""
