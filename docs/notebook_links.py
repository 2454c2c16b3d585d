"""A hook of mkdocs: links in notebooks to other pages, which mkdocs-jupyter leaves as they are in the file.

A link to a page that does not exist is a warning, which strict mode turns into an error.
"""

from __future__ import annotations

import logging
import posixpath
import re
from typing import Any

LINK = re.compile(r'href="(?!https?:|/|#)([^"#]+\.(?:md|ipynb))(#[^"]*)?"')
log = logging.getLogger("mkdocs.hooks.notebook_links")


def on_page_content(html: str, page: Any, files: Any, **_: Any) -> str:
    """See mkdocs' plugin events."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html

    def replace(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        target = files.get_file_from_path(
            posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), path))
        )
        if target is None:
            log.warning("%s contains a link '%s', but there is no such page", page.file.src_uri, path)
            return match[0]
        return f'href="{target.url_relative_to(page.file)}{anchor}"'

    return LINK.sub(replace, html)
