"""Evaluations: the records that are used, systems as collect runs, and the report."""
