"""Dynamic Temporal Filtering in Video Models.

Fuchen Long, Zhaofan Qiu, Yingwei Pan, Ting Yao, Chong-Wah Ngo, Tao Mei. ECCV, 2022.
"""

from typing import TYPE_CHECKING

from common.lazy import lazy_attributes

if TYPE_CHECKING:
    from papers.dtf.layers import DTFBlock
    from papers.dtf.lightning_module import DTFModule, DTFTransformerModule
    from papers.dtf.networks import dtf_net, dtf_transformer

__all__ = ["DTFBlock", "DTFModule", "DTFTransformerModule", "dtf_net", "dtf_transformer"]

__getattr__, __dir__ = lazy_attributes(
    __name__, layers="DTFBlock", lightning_module="DTFModule DTFTransformerModule", networks="dtf_net dtf_transformer"
)
