"""Videos and images from disk to batches: manifests, readers, frame sampling, transforms, Lightning data modules.

The names below are imported when first used, so that reading a manifest does not load Lightning.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "ClipSpec": "clip_spec",
    "load_views": "clip_spec",
    "ImageDataModule": "image",
    "ImageSpec": "image",
    "load_image": "image",
    "KeypointDataModule": "keypoints",
    "Entry": "manifest",
    "Manifest": "manifest",
    "ManifestError": "manifest",
    "find_videos": "manifest",
    "EncodedVideoReader": "readers",
    "FrameFolderReader": "readers",
    "ImageReadError": "readers",
    "VideoReadError": "readers",
    "open_video": "readers",
    "VideoDataModule": "video",
    "VolumeDataModule": "volumes",
    "VolumeReadError": "brats",
    "VolumeSpec": "volumes",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
