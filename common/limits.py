"""Limits on what a file may claim, so that a damaged one does not fill the memory.

The environment variable SPECTRAL_LIMITS raises all of them: SPECTRAL_LIMITS=4 allows four times as much.
"""

import os
import re

VARIABLE = "SPECTRAL_LIMITS"
HINT = f"{VARIABLE}=4 in the environment allows 4 times as much"  # for error messages


def limit(number: int) -> int:
    """A limit, times the whole number in SPECTRAL_LIMITS. Raises ValueError if that is none."""
    factor = os.environ.get(VARIABLE, "1")
    if not re.fullmatch("[1-9][0-9]{0,8}", factor):
        raise ValueError(f"{VARIABLE} is {factor!r}; it must be a whole number from 1 to 999999999")
    return number * int(factor)
