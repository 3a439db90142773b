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

import copy
import sys

import torch
from torch import nn

from common.backbones.resnet3d import ResNet3d
from common.evaluation.complexity import count
from common.evaluation.latency import measure_latency
from common.spectral.transforms import random_orthogonal
from papers.fdc3d.compression import compress
from papers.fdc3d.deployment import fold_batch_norms, trim_producers
from papers.fdc3d.layers import CompactConv3d
from papers.fdc3d.networks import compressed
from papers.fdc3d.rates import KeepTemporal
from papers.fdc3d.timing import choose_executions, measure
from tests.benchmarks.command import new_parser, parsed, restarted
from tests.networks import ChannelsLast


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
    parser = new_parser(__doc__, "a narrow network on small clips, three rounds", rounds=20)
    parser.add_argument("--depth", type=int, default=18, help="of the 3D-ResNet (default %(default)s)")
    parser.add_argument("--layers", action="store_true", help="also the table of all layers")
    options = parsed(parser, arguments)
    if (status := restarted("bench_fdc3d", arguments, options.device)) is not None:
        return status
    torch.manual_seed(0)
    width, shape, rounds = (
        (0.25, (2, 3, 8, 32, 32), 3) if options.quick else (1.0, (2, 3, 16, 112, 112), options.rounds)
    )
    x = torch.randn(shape, device=options.device)
    dense = ResNet3d(options.depth, width=width).to(options.device).eval()
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    folded = copy.deepcopy(dense)
    fold_batch_norms(folded, x)
    networks: dict[str, nn.Module] = {
        "dense": dense,
        "dense, channels last": ChannelsLast(dense),
        "dense, channels last, folded": ChannelsLast(folded),
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
