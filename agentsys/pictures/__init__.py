"""Pictures as inputs of roles: read and checked once, shown to models, referenced by digest in traces.

`picture.py` decodes and checks, `sources.py` finds the bytes (a path, a data URL, a struct of Parquet, an address), and
`agentsys/collect/pictures.py` keeps the pictures of a run. docs/pictures.md describes them.
"""

from __future__ import annotations

from agentsys.pictures.picture import Picture, PictureError, held_pictures, is_reference
from agentsys.pictures.sources import PictureInput, PictureRules, load_picture

__all__ = [
    "Picture", "PictureError", "PictureInput", "PictureRules", "held_pictures", "is_reference", "load_picture",
]  # fmt: skip
