"""Fonts for names in any script."""

from __future__ import annotations

import contextlib
import warnings
from functools import cache, lru_cache

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

FIRST = ("DejaVu Sans", f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf")  # carried by matplotlib


@lru_cache(maxsize=256)
def find_fonts(text: str) -> dict[str, str]:
    """Files, by name, of the installed fonts that have the characters of a text between them: DejaVu Sans, and more if
    it lacks some. A warning names the characters that no font has; they are drawn as boxes.
    """
    fonts = dict([FIRST])
    missing = {ord(character) for character in text if character.isprintable()} - characters(FIRST[1])
    for font in font_manager.fontManager.ttflist if missing else ():
        if not font.name.startswith("Last Resort") and (found := missing & characters(font.fname)):
            fonts[font.name] = font.fname
            missing -= found
    if missing:
        shown = "".join(map(chr, sorted(missing)[:10]))
        warnings.warn(
            f"no installed font has {shown}: names with these characters are drawn with boxes. Install a font of the "
            "script, such as fonts-noto-cjk.",
            stacklevel=2,
        )
    return fonts


@cache
def characters(path: str) -> frozenset[int]:
    """The characters of a font file; none if it is damaged."""
    with contextlib.suppress(OSError, RuntimeError):
        return frozenset(FT2Font(path).get_charmap())
    return frozenset()
