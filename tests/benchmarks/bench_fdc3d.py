"""Times compressed 3D-ResNets against the dense network.

    python -m tests.benchmarks.bench_fdc3d [--quick] [--depth 18] [--layers]

One run: in each round all networks take their turn. Times are medians, "x" is the dense network's time over that of
the row, "least" the same for the fastest calls. Two things speed up a network here: fewer multiply-adds, and better
use of the machine (memory order, folded batch normalisation, the way a layer is computed). The rows of the dense
network show what the second gives without any compression. "straightforward" computes every compact layer as one
temporal product and one 2D convolution in the usual memory order; "measured" has the executions that
`papers.fdc3d.choose_executions` found; "trimmed" also lacks the filters that nothing reads.

Weights are random: they do not matter for the time. The allocator is set as in `bench_stft`.
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.backbones.resnet3d import ResNet3d
from common.evaluation.complexity import count
from common.evaluation.latency import measure_latency
from common.spectral.transforms import random_orthogonal
from papers.fdc3d.compression import compress
from papers.fdc3d.deployment import trim_producers
from papers.fdc3d.layers import CompactConv3d
from papers.fdc3d.networks import compressed
from papers.fdc3d.rates import KeepTemporal
from papers.fdc3d.timing import choose_executions, measure
from tests.benchmarks.bench_stft import KEEP_MEMORY


class ChannelsLast(nn.Module):
    """A network on its input with channels last in memory."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        for module in network.modules():
            if isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.contiguous(memory_format=torch.channels_last_3d))


def folded(network: nn.Module) -> nn.Module:
    """A copy of a 3D-ResNet with the batch normalisations folded into the convolutions before them."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        pairs = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)] + [("0", "1")]
        for conv, norm in pairs:
            if isinstance(getattr(parent, conv, None), nn.Conv3d) and isinstance(
                getattr(parent, norm, None), nn.BatchNorm3d
            ):
                setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm)))
                setattr(parent, norm, nn.Identity())
    return network


def scattered(network: nn.Module) -> nn.Module:
    """The network with kept channels all over the place, as they are after learning; trained ones are not the first."""
    for module in network.modules():
        if isinstance(module, CompactConv3d) and module.groups == 1:
            order = torch.randperm(module.in_channels, device=module.kept.device)
            module.kept.copy_(order[: module.kept_channels].sort().values)
            if module.kept_rows < module.kernel_size[0]:
                module.transform.copy_(random_orthogonal(module.kernel_size[0])[: module.kept_rows])
    return network


def main(argv: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a narrow network on small clips, three rounds")
    parser.add_argument("--depth", type=int, default=18, help="of the 3D-ResNet (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="timed calls of every network (default %(default)s)")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--layers", action="store_true", help="also the table of all layers")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options, _ = parser.parse_known_args(arguments)
    if sys.platform == "linux" and any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):
        command = [sys.executable, "-m", "tests.benchmarks.bench_fdc3d", *arguments]
        return subprocess.run(command, env={**os.environ, **KEEP_MEMORY}, check=False).returncode
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    width, shape, rounds = (
        (0.25, (2, 3, 8, 32, 32), 3) if options.quick else (1.0, (2, 3, 16, 112, 112), options.rounds)
    )
    x = torch.randn(shape, device=options.device)
    dense = ResNet3d(options.depth, width=width).to(options.device).eval()
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    networks: dict[str, nn.Module] = {
        "dense": dense,
        "dense, channels last": ChannelsLast(copy.deepcopy(dense)),
        "dense, channels last, folded": ChannelsLast(folded(dense)),
    }
    rules: list[tuple[KeepTemporal, str]] = [("figure3", "7>4"), ("floor", "7>5")]
    for rate in (2, 4):
        for rule, kept in rules:
            name = f"{rate}x, {kept}"
            network = scattered(compressed(copy.deepcopy(dense), shape, rate, keep_temporal=rule))
            networks[f"{name}, straightforward"] = copy.deepcopy(network)
            networks[f"{name}, measured"] = choose_executions(network, x)
            if rule == "figure3":
                trimmed = copy.deepcopy(network)
                trim_producers(trimmed, x)
                networks[f"{name}, measured, trimmed"] = choose_executions(trimmed, x)
    times = measure_latency(networks, x, repeats=rounds)
    first = next(iter(times.values()))
    macs = count(dense, (1, *shape[1:])).macs_paper
    print(f"\n3D-ResNet-{options.depth}, {'x'.join(map(str, shape))}")
    print(f"{'':36s}{'ms':>9s}{'x':>7s}{'least':>7s}{'multiply-adds':>15s}")
    for name, time in times.items():
        inner = networks[name].network if isinstance(networks[name], ChannelsLast) else networks[name]
        fewer = macs / count(inner, (1, *shape[1:])).macs_paper  # type: ignore[arg-type]
        print(
            f"{name:36s}{1e3 * time.seconds:9.1f}{1 / time.ratio:7.2f}{first.fastest / time.fastest:7.2f}{fewer:14.2f}x"
        )
    for rate in (2, 4) if options.layers else ():
        # How S and beta are found makes no difference to the time; one batch does.
        found = compress(dense, [x[:1]], rate=rate, method="dct", steps=1, progress=False)
        print(measure(found.report, dense, choose_executions(found.network, x), x, rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
