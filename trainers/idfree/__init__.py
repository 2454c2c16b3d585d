"""IDfree-PL: personal models from texts without user identifiers (arXiv 2501.06062)."""
