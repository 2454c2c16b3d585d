"""Text: words, languages, and Chinese scripts."""
