"""Labelled demonstration data made on this machine, without a download: one module per demo.

Every public module of this package is a subcommand of ``python -m data.demo``.
"""

from data.demo.digits import NAMES as DIGITS
from data.demo.digits import generate_digits
from data.demo.lamps import generate_lamps
from data.demo.motion import MOTION_PAIRS, generate_motion
from data.demo.temporal_order import generate_temporal_order

__all__ = [
    "DIGITS",
    "MOTION_PAIRS",
    "generate_digits",
    "generate_lamps",
    "generate_motion",
    "generate_temporal_order",
]
