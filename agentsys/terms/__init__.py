"""Terminology: term lists, dictionaries, translation memories, and the sources that look up a term's translations."""
