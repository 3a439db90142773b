"""Fast Non-Local Neural Networks with Spectral Residual Learning.

Lu Chi, Guiyu Tian, Yadong Mu, Lingxi Xie, Qi Tian. ACM Multimedia, 2019.
"""

from papers.srl.layers import SRLBlock
from papers.srl.lightning_module import SRLPoseModule, SRLVideoModule
from papers.srl.networks import pose_resnet, srl_c2d

__all__ = ["SRLBlock", "SRLPoseModule", "SRLVideoModule", "pose_resnet", "srl_c2d"]
