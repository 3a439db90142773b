"""FDC3D, its ablations (Table 2) and the methods that it is compared with (Table 1), as objects of one interface.

To add a method, subclass `Method` and add an object to `METHODS`; Algorithm 1 and the command lines need no change.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.spectral.transforms import dct_matrix

#: takes the network's output and the batch, gives a scalar
Loss = Callable[[Any, Any], Tensor]
INPUT_KEYS = ("video", "volume", "image")


class CompressionError(ValueError):
    """The network, the batches or the options do not fit."""


@dataclass(frozen=True)
class Examples:
    """What a method learns from: iterates over the first `count` batches, starting over where they end.

    Attributes:
        batches: real inputs, as `inputs_of` takes them.
        count: number of batches.
        loss, learning_rate: for methods that need them.
    """

    batches: Iterable[Any]
    count: int
    loss: Loss
    learning_rate: float

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(itertools.chain.from_iterable(itertools.repeat(self.batches)), self.count)


class Method:
    """How the temporal rows and the input channels that are kept are chosen. The plain class prunes channels by Eq. 8.

    Attributes:
        prunes_rows: whether rows of S are dropped.
        learns_transform: whether S is learned by Eq. 7; otherwise it stays what `transform` gives.
        trains: whether `train` changes the network before it is pruned.
    """

    prunes_rows = False
    learns_transform = False
    trains = False

    def transform(self, taps: int) -> Tensor:
        """The initial S, (t,t) float64."""
        return torch.eye(taps, dtype=torch.float64)

    def train(self, network: nn.Module, dropped: Mapping[str, int], examples: Examples) -> None:
        """Train the network in place before it is pruned.

        Args:
            dropped: names of the convolutions that lose input channels, and how many.
            examples: labelled batches, with the loss and the learning rate.
        """

    def channel_scores(self, network: nn.Module, dropped: Mapping[str, int], examples: Examples) -> dict[str, Tensor]:
        """Scores (C,) of the input channels of the convolutions in `dropped`; the smallest go.

        Convolutions without scores are pruned by the channel weights of Eq. 8.
        """
        return {}


class Identity(Method):
    """Drops taps as they are: S is the identity."""

    prunes_rows = True


class FixedDCT(Identity):
    """S is the discrete cosine transform (Eq. 3)."""

    def transform(self, taps: int) -> Tensor:
        return dct_matrix(taps).double()


class LearnedTransform(FixedDCT):
    """The paper's method: S and beta are learned by Eq. 9, S starting from the DCT."""

    learns_transform = True


class L1Norm(Method):
    """Smallest absolute weights (Li et al., ICLR 2017)."""

    def channel_scores(self, network: nn.Module, dropped: Mapping[str, int], examples: Examples) -> dict[str, Tensor]:
        return {name: channel_norms(conv).cpu() for name, conv in _convolutions(network, dropped).items()}


class Taylor(Method):
    """Smallest change of the loss: mean over examples of |mean over positions of x dL/dx| (Molchanov et al., Eq. 8)."""

    def channel_scores(self, network: nn.Module, dropped: Mapping[str, int], examples: Examples) -> dict[str, Tensor]:
        convolutions = _convolutions(network, dropped)
        scores = {name: torch.zeros(conv.in_channels) for name, conv in convolutions.items()}
        inputs: dict[str, Tensor] = {}

        def hook(name: str) -> Callable[..., tuple[Tensor]]:
            def keep(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
                x = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
                x = x.clone()  # the original may be changed in place afterwards
                x.retain_grad()
                inputs[name] = x
                return (x,)

            return keep

        with ExitStack() as hooks:
            for name, conv in convolutions.items():
                hooks.enter_context(conv.register_forward_pre_hook(hook(name)))
            for batch in examples:
                inputs.clear()
                with torch.enable_grad():
                    examples.loss(network(inputs_of(batch, network)), batch).backward()
                for name, x in inputs.items():
                    if x.grad is not None:
                        scores[name] += (x.grad * x.detach()).mean(dim=(2, 3, 4)).abs().mean(dim=0).cpu()
                network.zero_grad(set_to_none=True)
        return scores


class Regularisation(L1Norm):
    """Weight decay that grows for the weakest channels while training (Wang et al., 2018; Zhang et al., ICIP 2019).

    In a layer that is to lose n of its channels, the decay of the channel of rank r (by l1 norm) grows by A (1 - r/n)
    in every step, and that of channels beyond rank n shrinks, to 0 at least. A is such that the weakest channels have
    vanished after the last step.
    """

    trains = True

    def train(self, network: nn.Module, dropped: Mapping[str, int], examples: Examples) -> None:
        was_training = network.training
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=examples.learning_rate)
        growth = 14 / (examples.learning_rate * examples.count**2)
        convolutions = _convolutions(network, dropped)
        decay = {name: torch.zeros_like(channel_norms(conv)) for name, conv in convolutions.items()}
        for batch in examples:
            with torch.enable_grad():
                value = examples.loss(network(inputs_of(batch, network)), batch)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
            with torch.no_grad():
                for name, conv in convolutions.items():
                    rank = channel_norms(conv).argsort().argsort().float()
                    weak = 1 - rank / dropped[name]
                    strong = -(rank - dropped[name]) / max(conv.in_channels - dropped[name] - 1, 1)
                    change = growth * torch.where(rank < dropped[name], weak, strong)
                    decay[name] = (decay[name] + change).clamp_(min=0)
                    conv.weight.mul_((1 - examples.learning_rate * decay[name]).clamp_(min=0).view(1, -1, 1, 1, 1))
            optimizer.step()
        network.train(was_training)


METHODS: Mapping[str, Method] = {
    "fdc3d": LearnedTransform(),
    "dct": FixedDCT(),
    "identity": Identity(),
    "channels": Method(),
    "l1": L1Norm(),
    "taylor": Taylor(),
    "regularisation": Regularisation(),
}
if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]  # command lines list and check these names


def channel_norms(conv: nn.Conv3d) -> Tensor:
    """The l1 norms of the weights of every input channel, (C,)."""
    return conv.weight.detach().abs().sum(dim=(0, 2, 3, 4))


def _convolutions(network: nn.Module, names: Mapping[str, int]) -> dict[str, nn.Conv3d]:
    return {name: network.get_submodule(name) for name in names}  # type: ignore[misc]


def inputs_of(batch: Any, network: nn.Module) -> Tensor:
    """The network's input in a batch, on the device of the network.

    Args:
        batch: a tensor, a sequence that begins with one, or a mapping that has one under `video`, `volume` or `image`.

    Raises:
        CompressionError: there is none.
    """
    x = batch
    if isinstance(batch, Mapping):
        x = next((batch[key] for key in INPUT_KEYS if key in batch), None)
    elif isinstance(batch, list | tuple) and batch:
        x = batch[0]
    if not isinstance(x, Tensor):
        what = f"a mapping with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
        raise CompressionError(
            f"a batch must be a tensor, begin with one, or have it under {', '.join(INPUT_KEYS)}, but is {what}"
        )
    parameter = next(network.parameters(), None)
    return x if parameter is None else x.to(parameter.device)


def classification_loss(output: Any, batch: Any) -> Tensor:
    """Cross-entropy of logits (B,classes) and the labels of a batch, which it has under `label` or in second place.

    Raises:
        CompressionError: the batch has no labels.
    """
    labels = batch.get("label") if isinstance(batch, Mapping) else batch[1] if isinstance(batch, list | tuple) else None
    if not isinstance(labels, Tensor) or not isinstance(output, Tensor) or output.dim() != 2:
        raise CompressionError("this method needs a loss: batches with class labels, or `loss` for another task")
    return F.cross_entropy(output, labels.to(output.device))
