"""Trainers: from traces to a better small model."""
