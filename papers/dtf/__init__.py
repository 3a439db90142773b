"""Dynamic Temporal Filtering in Video Models.

Fuchen Long, Zhaofan Qiu, Yingwei Pan, Ting Yao, Chong-Wah Ngo, Tao Mei. ECCV, 2022.
"""

from typing import TYPE_CHECKING, Any

from papers.dtf.layers import DTFBlock
from papers.dtf.networks import dtf_net, dtf_transformer

if TYPE_CHECKING:
    from papers.dtf.lightning_module import DTFModule, DTFTransformerModule

__all__ = ["DTFBlock", "DTFModule", "DTFTransformerModule", "dtf_net", "dtf_transformer"]


def __getattr__(name: str) -> Any:
    """The modules are imported when they are asked for, so that networks and layers need no Lightning."""
    if name in ("DTFModule", "DTFTransformerModule"):
        from papers.dtf import lightning_module

        return getattr(lightning_module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
