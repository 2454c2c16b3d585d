"""Terminology: term lists, translation memories, and where a term's translations are looked up."""
