"""Agents as graphs of roles, and the training data that they write."""
