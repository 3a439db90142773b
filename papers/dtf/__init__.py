"""Dynamic Temporal Filtering in Video Models.

Fuchen Long, Zhaofan Qiu, Yingwei Pan, Ting Yao, Chong-Wah Ngo, Tao Mei. ECCV, 2022.
"""

from papers.dtf.layers import DTFBlock
from papers.dtf.networks import dtf_net

__all__ = ["DTFBlock", "dtf_net"]
