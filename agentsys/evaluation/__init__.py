"""Evaluations: which records are used, systems as collect runs, and the report."""
