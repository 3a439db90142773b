"""Data modules for videos, images, persons with keypoints, and volumes: from files to batches.

The data modules are imported when first used, so that reading a manifest loads neither Lightning nor MONAI.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.datamodules.image import ImageDataModule
    from common.datamodules.keypoints import KeypointDataModule
    from common.datamodules.video import VideoDataModule
    from common.datamodules.volumes import VolumeDataModule

__all__ = ["ImageDataModule", "KeypointDataModule", "VideoDataModule", "VolumeDataModule"]

_HOMES = {
    "ImageDataModule": "image",
    "KeypointDataModule": "keypoints",
    "VideoDataModule": "video",
    "VolumeDataModule": "volumes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
