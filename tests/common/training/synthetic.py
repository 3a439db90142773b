"""Tiny random clips without files, for tests of the training code alone."""

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from common.datamodules.video_clips import ClipSpec


class _Clips(Dataset):
    def __init__(self, count: int, classes: int, views: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.label = torch.arange(count) % classes
        noise = torch.randn(count, views, 3, 4, 8, 8, generator=generator)
        self.video = noise + self.label.view(-1, 1, 1, 1, 1, 1)

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> dict:
        return {"video": self.video[index], "label": int(self.label[index]), "index": index}


def _collate(items: list[dict]) -> dict:
    views = len(items[0]["video"])
    return {
        "video": torch.cat([item["video"] for item in items]),
        "label": torch.tensor([item["label"] for item in items for _ in range(views)]),
        "video_index": torch.tensor([item["index"] for item in items for _ in range(views)]),
        "path": [f"clip{item['index']}.mp4" for item in items for _ in range(views)],
    }


class SyntheticClips(L.LightningDataModule):
    """Batches after the contract of ``VideoDataModule``."""

    def __init__(self, batch_size: int = 4, train: int = 12, test: int = 7, classes: int = 3, views: int = 2) -> None:
        super().__init__()
        self.batch_size, self.train, self.test, self.views = batch_size, train, test, views
        self.output_names = [f"class {k}" for k in range(classes)]
        self.spec = ClipSpec(num_frames=4, crop_size=8)
        self.manifest_hash = "0" * 64

    def facts(self) -> dict:
        return {"num_classes": len(self.output_names), "num_frames": self.spec.num_frames}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Clips(self.train, len(self.output_names), 1), self.batch_size, collate_fn=_collate)

    def val_dataloader(self) -> DataLoader:
        clips = _Clips(self.test, len(self.output_names), self.views)
        return DataLoader(clips, self.batch_size, collate_fn=_collate)

    test_dataloader = val_dataloader
