"""Fast Non-Local Neural Networks with Spectral Residual Learning.

Lu Chi, Guiyu Tian, Yadong Mu, Lingxi Xie, Qi Tian. ACM Multimedia, 2019.
"""

from typing import TYPE_CHECKING, Any

from papers.srl.layers import SRLBlock
from papers.srl.networks import pose_resnet, srl_c2d

if TYPE_CHECKING:
    from papers.srl.lightning_module import SRLPoseModule, SRLVideoModule

__all__ = ["SRLBlock", "SRLPoseModule", "SRLVideoModule", "pose_resnet", "srl_c2d"]


def __getattr__(name: str) -> Any:
    """The modules are imported when they are asked for, so that networks and layers need no Lightning."""
    if name in ("SRLPoseModule", "SRLVideoModule"):
        from papers.srl import lightning_module

        return getattr(lightning_module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
