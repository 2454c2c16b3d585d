"""Text in any language: words and units of any script, language tags, traditional and simplified Chinese."""
