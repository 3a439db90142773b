"""Data modules for videos, images, persons with keypoints, and volumes: from files to batches.

The data modules are imported when first used, so that reading a manifest loads neither Lightning nor MONAI.
"""

from typing import TYPE_CHECKING

from common.lazy import lazy_attributes

if TYPE_CHECKING:
    from common.datamodules.image import ImageDataModule
    from common.datamodules.keypoints import KeypointDataModule
    from common.datamodules.video import VideoDataModule
    from common.datamodules.volumes import VolumeDataModule

__all__ = ["ImageDataModule", "KeypointDataModule", "VideoDataModule", "VolumeDataModule"]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    image="ImageDataModule",
    keypoints="KeypointDataModule",
    video="VideoDataModule",
    volumes="VolumeDataModule",
)
