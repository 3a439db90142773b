"""Swin Transformer over the frames of a clip, with a place for a block that looks across time.

Built of torchvision's blocks and with its parameter names; weights of timm and of the original code are renamed
(`common.backbones.load_imagenet`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torchvision.ops.misc import Permute

from common.backbones.c2d_resnet import TemporalStem, as_video, fold_frames, unfold_frames

#: size: channels of the first stage, blocks and heads of the four stages, probability of dropping the last residual
SIZES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], float]] = {
    "t": (96, (2, 2, 6, 2), (3, 6, 12, 24), 0.2),
    "s": (96, (2, 2, 18, 2), (3, 6, 12, 24), 0.3),
    "b": (128, (2, 2, 18, 2), (4, 8, 16, 32), 0.5),
}


class SwinBlock(SwinTransformerBlock):
    """A Swin block on (B,T,H,W,C), with a module on (B,C,T,H,W) between attention and perceptron."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.mid: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        video, x = x.shape[:2], x.flatten(0, 1)
        x = x + self.stochastic_depth(self.attn(self.norm1(x)))
        if self.mid is not None:
            x = self.mid(x.unflatten(0, video).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).flatten(0, 1)
        return (x + self.stochastic_depth(self.mlp(self.norm2(x)))).unflatten(0, video)


class _PatchEmbedding(nn.Module):
    """(B,3,T,H,W) -> (B,T',H/patch,W/patch,C); its parts are numbered as in torchvision."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, stem_stride: int) -> None:
        super().__init__()
        temporal = TemporalStem(conv.out_channels, stem_stride, conv.kernel_size[0], conv.stride[0], 0, bias=True)
        self.add_module("0", conv if stem_stride == 1 else temporal)
        self.add_module("2", norm)

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self.children()
        y = conv(x) if isinstance(conv, TemporalStem) else unfold_frames(conv(fold_frames(x)), x.shape[2])
        return norm(y.permute(0, 2, 3, 4, 1))


class C2DSwin(SwinTransformer):
    """Classifier over clips: video (B,3,T,H,W), or images (B,3,H,W), to logits (B,`num_classes`). Any T, H, W >= 4.

    Args:
        size: `t`, `s` or `b`.
        num_classes: number of classes.
        dropout: probability before the classifier.
        stem_stride: frames that one step of the patch embedding takes in (kernel = stride in time).
        mid_block: from (channels, stage 1 to 4, index of the block) to a module that keeps (B,channels,T,H,W), put
            behind the attention over regular windows (its residual included), or to None. Blocks with shifted windows
            are not asked for. In stages whose map for `image_size` is one window, no block shifts.
        image_size: side of the images in training; only decides what is said above.
        embed_dim, depths, heads: of the network, by default those of `size`.
        window: side of the windows.
        patch_norm: layer normalisation after the patch embedding.
        stochastic_depth: probability of dropping the last residual, by default that of `size`.

    Raises:
        ValueError: an unknown size, or an input that is no video or image.
    """

    def __init__(
        self,
        size: str = "b",
        num_classes: int = 400,
        dropout: float = 0.0,
        stem_stride: int = 1,
        mid_block: Callable[[int, int, int], nn.Module | None] | None = None,
        image_size: int = 224,
        embed_dim: int | None = None,
        depths: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        window: int = 7,
        patch_norm: bool = True,
        stochastic_depth: float | None = None,
    ) -> None:
        if size not in SIZES:
            raise ValueError(f"there is no Swin of size {size!r}; choose one of {', '.join(SIZES)}")
        standard = SIZES[size]
        super().__init__(
            [4, 4],
            embed_dim or standard[0],
            list(depths or standard[1]),
            list(heads or standard[2]),
            [window, window],
            stochastic_depth_prob=standard[3] if stochastic_depth is None else stochastic_depth,
            num_classes=num_classes,
            block=SwinBlock,
        )
        self.stem_stride = stem_stride
        features: Any = self.features
        conv, _, norm = features[0]
        features[0] = _PatchEmbedding(conv, norm if patch_norm else nn.Identity(), stem_stride)
        for number, stage in enumerate(features[1::2]):
            one_window = image_size // 4 // 2**number <= window
            for index, block in enumerate(stage):
                if mid_block is not None and (one_window or not any(block.attn.shift_size)):
                    block.mid = mid_block(block.norm1.normalized_shape[0], number + 1, index)
        self.permute = Permute([0, 4, 1, 2, 3])
        self.dropout = nn.Dropout(dropout)
        del self.avgpool, self.flatten

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(as_video(x))
        return self.head(self.dropout(self.permute(self.norm(x)).mean(dim=(2, 3, 4))))

    def rename_image_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of a Swin of timm or of the original code in torchvision's names.

        A normalisation of the patches is left out where the network has none.
        """
        if "patch_embed.proj.weight" not in state:
            return self._without_patch_norm(state)
        # The original has a stage's patch merging at its end, timm at the beginning of the next.
        end = 2 if "layers.0.downsample.norm.weight" in state else 0
        renamed = {}
        for name, value in state.items():
            if name.endswith((".relative_position_index", ".attn_mask")):
                continue  # computed, and of another shape
            parts = name.split(".")
            if parts[0] == "patch_embed":
                parts[:2] = ["features", "0", {"proj": "0", "norm": "2"}[parts[1]]]
            elif parts[0] == "layers" and parts[2] == "blocks":
                parts[:3] = ["features", str(2 * int(parts[1]) + 1)]
                parts = [{"fc1": "0", "fc2": "3"}.get(part, part) for part in parts]
            elif parts[0] == "layers":
                parts[:3] = ["features", str(2 * int(parts[1]) + end)]
            elif parts[:2] == ["head", "fc"]:
                parts[:2] = ["head"]
            renamed[".".join(parts)] = value
        computed = {n: b for n, b in self.named_buffers() if n.endswith(".relative_position_index")}
        return {**computed, **self._without_patch_norm(renamed)}

    def _without_patch_norm(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        absent = isinstance(self.get_submodule("features.0.2"), nn.Identity)
        return {name: value for name, value in state.items() if not (absent and name.startswith("features.0.2."))}
