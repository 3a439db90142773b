"""Fast Non-Local Neural Networks with Spectral Residual Learning.

Lu Chi, Guiyu Tian, Yadong Mu, Lingxi Xie, Qi Tian. ACM Multimedia, 2019.
"""

from typing import TYPE_CHECKING

from common.lazy import lazy_attributes

if TYPE_CHECKING:
    from papers.srl.layers import SRLBlock
    from papers.srl.lightning_module import SRLPoseModule, SRLVideoModule
    from papers.srl.networks import pose_resnet, srl_c2d

__all__ = ["SRLBlock", "SRLPoseModule", "SRLVideoModule", "pose_resnet", "srl_c2d"]

__getattr__, __dir__ = lazy_attributes(
    __name__, layers="SRLBlock", lightning_module="SRLPoseModule SRLVideoModule", networks="pose_resnet srl_c2d"
)
