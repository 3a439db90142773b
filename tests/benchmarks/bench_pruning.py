"""Compares FDC3D with channel pruning by torch-pruning, at equal latency and at equal multiply-adds.

    python -m tests.benchmarks.bench_pruning [--quick] [--seeds 5] [--json FILE] [--markdown FILE]

A 3D-ResNet-10 at half its width is trained on clips of eight generated motions, once for every seed. FDC3D
compresses it at 2x and 4x. torch-pruning removes channels, the same share in every layer, ranked by group magnitude or
by the first-order Taylor term; the share is chosen by bisection, so that the network takes as long as that of FDC3D, or
has as many multiply-adds. All are fine-tuned for two epochs with the better of two learning rates on validation data,
chosen with the first seed; so is the dense network, which serves as the control.

Latency is of a batch of eight clips with one thread, of the fastest form of each network: batch normalisation folded,
in either memory order; for FDC3D also without the filters that no layer reads and with the executions that
`papers.fdc3d.choose_executions` finds. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from common.backbones.resnet3d import ResNet3d
from common.comparison.statistics import Interval, mean_interval, paired_difference
from common.datamodules import VideoDataModule
from common.evaluation.complexity import count
from common.evaluation.latency import measure_latency
from data.demo.motion import generate_motion
from papers.fdc3d import choose_executions, compress, fold_batch_norms
from papers.fdc3d.deployment import trim_producers
from papers.fdc3d.layers import CompactConv3d
from tests.networks import ChannelsLast

TRAINS = True  # for some 40 minutes on two cores
RATES = (2, 4)
CRITERIA = {"magnitude": "GroupMagnitudeImportance", "Taylor": "GroupTaylorImportance"}
FINE_TUNING = (0.005, 0.02)  # learning rates that are tried
COLUMNS = [
    "network",
    "multiply-adds (M)",
    "parameters (k)",
    "time / dense",
    "error of the output",
    "test before (%)",
    "test after (%)",
    "train after (%)",
    "FDC3D − it, points",
]
NAMES = {"fdc3d": "FDC3D", "dense": "dense, trained on"}


@dataclass(frozen=True)
class Setting:
    """Sizes of the comparison."""

    width: float = 0.5
    depth: int = 10
    side: int = 48
    epochs: int = 16
    tuning_epochs: int = 2
    clips: tuple[int, int, int] = (60, 20, 50)  # training, validation and test clips of each class
    repeats: int = 15

    @property
    def shape(self) -> tuple[int, ...]:
        return 8, 3, 8, self.side, self.side

    def network(self) -> ResNet3d:
        return ResNet3d(self.depth, num_classes=8, width=self.width)


def pruned(dense: nn.Module, share: float, criterion: str, batches: Sequence[Mapping[str, Tensor]]) -> nn.Module:
    """A copy of a network without this share of the channels of every layer."""
    import torch_pruning

    network = copy.deepcopy(dense).eval()
    importance = getattr(torch_pruning.importance, CRITERIA[criterion])()
    last = [module for module in network.modules() if isinstance(module, nn.Linear)]
    pruner = torch_pruning.pruner.BasePruner(
        network, batches[0]["video"][:1], importance=importance, pruning_ratio=share, ignored_layers=last
    )
    for batch in batches if criterion == "Taylor" else ():
        F.cross_entropy(network(batch["video"]), batch["label"]).backward()
    pruner.step()
    network.zero_grad(set_to_none=True)
    return network


def fastest_forms(network: nn.Module, x: Tensor) -> dict[str, nn.Module]:
    """What may be the fastest way to run a network."""
    network = copy.deepcopy(network).eval()
    compact = any(isinstance(module, CompactConv3d) for module in network.modules())
    if compact:
        trim_producers(network, x)
    fold_batch_norms(network, x)
    if compact:
        return {"chosen": choose_executions(network, x)}
    return {"folded": network, "folded, channels last": ChannelsLast(network)}


def latencies(networks: Mapping[str, nn.Module], x: Tensor, repeats: int) -> dict[str, float]:
    """Seconds of each network in its fastest form, measured in turns."""
    forms = {
        (name, form): each for name, network in networks.items() for form, each in fastest_forms(network, x).items()
    }
    times = measure_latency({" ".join(key): each for key, each in forms.items()}, x, repeats=repeats)
    return {name: min(times[" ".join(key)].seconds for key in forms if key[0] == name) for name in networks}


def bisect(measure: Callable[[float], float], target: float, steps: int) -> float:
    """The share at which a falling quantity reaches a target, between 0 and 0.95."""
    low, high = 0.0, 0.95
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if measure(middle) > target else (low, middle)
    return (low + high) / 2


def macs_of(network: nn.Module, setting: Setting) -> int:
    return count(network, (1, *setting.shape[1:])).macs_paper


def find_shares(setting: Setting) -> dict[tuple[int, str], float]:
    """Shares of channels to remove by rate and by what is to be equal, `latency` or `multiply-adds`."""
    torch.manual_seed(0)
    dense, x = setting.network().eval(), torch.randn(setting.shape)
    batches = [{"video": x}]
    shares = {}
    for rate in RATES:
        ours = compress(dense, [x], rate=rate, steps=1, progress=False).network

        def time(share: float, ours: nn.Module = ours) -> float:
            """Relative to ours, so that a slow moment meets both."""
            rival = pruned(dense, share, "magnitude", batches)
            found = latencies({"ours": ours, "rival": rival}, x, setting.repeats)
            return found["rival"] / found["ours"]

        shares[rate, "latency"] = bisect(time, 1.0, 6)
        target = macs_of(ours, setting)
        shares[rate, "multiply-adds"] = bisect(
            lambda share: macs_of(pruned(dense, share, "magnitude", batches), setting), target, 10
        )
        print(f"{rate}x: shares of channels {[round(shares[rate, what], 3) for what in ('latency', 'multiply-adds')]}")
    return shares


def variants(
    dense: nn.Module, shares: Mapping[tuple[int, str], float], batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, nn.Module]:
    """The networks to compare, by name."""
    found: dict[str, nn.Module] = {"dense": copy.deepcopy(dense)}
    for rate in RATES:
        found[f"fdc3d {rate}x"] = compress(dense, batches, rate=rate, steps=len(batches), progress=False).network
        for what in ("latency", "multiply-adds"):
            for criterion in CRITERIA:
                found[f"{criterion} {rate}x {what}"] = pruned(dense, shares[rate, what], criterion, batches)
    return found


# -- training ----------------------------------------------------------------------------------------------------------


def data_module(folder: Path, setting: Setting) -> VideoDataModule:
    module = VideoDataModule(
        dataset="motion",
        root=str(folder),
        manifest=str(folder / "manifest.csv"),
        num_frames=8,
        crop_size=setting.side,
        batch_size=8,
        num_workers=0,
        cache_decoded=True,
    )
    module.setup("fit")
    module.setup("test")
    return module


def train(network: nn.Module, loader: Any, epochs: int, rate: float) -> nn.Module:
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, weight_decay=1e-5)
    network.train()
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(batch["video"]), batch["label"]).backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def outcomes(network: nn.Module, loader: Any) -> tuple[Tensor, Tensor]:
    """Logits, and whether each video is classified correctly."""
    network.eval()
    logits = [network(batch["video"]) for batch in loader]
    labels = [batch["label"] for batch in loader]
    found = torch.cat(logits)
    return found, (found.argmax(1) == torch.cat(labels)).double()


def run_seed(
    seed: int,
    folder: Path,
    setting: Setting,
    shares: Mapping[tuple[int, str], float],
    rates: Mapping[str, float] | None,
) -> dict[str, dict[str, Any]]:
    """Train, compress and fine-tune with one seed; without `rates` both learning rates are tried on validation data."""
    torch.set_num_threads(1)
    L.seed_everything(seed, verbose=False)
    data = data_module(folder, setting)
    loader = data.train_dataloader()
    dense = train(setting.network(), loader, setting.epochs, 0.01)
    examples = [batch for _, batch in zip(range(3), loader, strict=False)]
    expected, _ = outcomes(dense, data.test_dataloader())
    found = {}
    for name, start in variants(dense, shares, examples).items():
        before, right = outcomes(start, data.test_dataloader())
        trials = {}
        for rate in FINE_TUNING if rates is None else (rates[name],):
            L.seed_everything(seed, verbose=False)
            tuned = train(copy.deepcopy(start), loader, setting.tuning_epochs, rate)
            trials[rate] = outcomes(tuned, data.val_dataloader())[1].mean().item(), tuned
        rate, (_, tuned) = max(trials.items(), key=lambda trial: trial[1][0])
        found[name] = {
            "rate": rate,
            "error": ((before - expected).norm() / expected.norm()).item(),
            "before": right.mean().item(),
            "right": outcomes(tuned, data.test_dataloader())[1].tolist(),
            "train": outcomes(tuned, loader)[1].mean().item(),
            "macs": macs_of(tuned, setting),
            "params": sum(parameter.numel() for parameter in tuned.parameters()),
        }
        print(f"seed {seed}, {name}: {found[name]['before']:.3f} > {np.mean(found[name]['right']):.3f}", flush=True)
    return found


# -- the table ---------------------------------------------------------------------------------------------------------


def title(name: str) -> str:
    method, *rest = name.split(" ")
    if method in NAMES:
        return " ".join([NAMES[method], *rest])
    return f"torch-pruning, {method}, equal {rest[1]} to {rest[0]}"


def percent(interval: Interval) -> str:
    if np.isnan(interval.low):
        return f"{100 * interval.mean:.1f}"
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def table(results: Sequence[Mapping[str, Mapping[str, Any]]], times: Mapping[str, float]) -> list[list[str]]:
    """The rows of the table, the names of its columns first."""
    rows = [COLUMNS]
    for name in results[0]:
        of = [result[name] for result in results]
        right = np.array([each["right"] for each in of])
        rate = next((word for word in name.split(" ") if word in [f"{r}x" for r in RATES]), None)
        difference = "–"
        if rate and not name.startswith("fdc3d"):
            ours = np.array([result[f"fdc3d {rate}"]["right"] for result in results])
            difference = percent(paired_difference(ours.mean(1), right.mean(1), ours, right))
        rows.append(
            [
                title(name),
                f"{of[0]['macs'] / 1e6:.0f}",
                f"{of[0]['params'] / 1e3:.0f}",
                f"{times[name] / times['dense']:.2f}",
                f"{np.mean([each['error'] for each in of]):.2f}",
                f"{100 * np.mean([each['before'] for each in of]):.1f}",
                percent(mean_interval(right.mean(1))),
                f"{100 * np.mean([each['train'] for each in of]):.1f}",
                difference,
            ]
        )
    return rows


def to_markdown(rows: Sequence[Sequence[str]], seeds: int) -> str:
    import torch_pruning

    lines = ["# FDC3D and channel pruning at equal time", "", *(__doc__ or "").strip().splitlines()[4:], ""]
    lines += [
        f"Measured by `python -m tests.benchmarks.bench_pruning --seeds {seeds} --markdown FILE`. "
        f"Means of {seeds} seeds with 95 % intervals; differences are paired, and positive where FDC3D is better. "
        f"PyTorch {torch.__version__}, torch-pruning {torch_pruning.__version__}, one thread.",
        "",
        f"| {' | '.join(rows[0])} |",
        "|---" + "|--:" * (len(rows[0]) - 1) + "|",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows[1:])]) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a narrow network, few clips, one seed: whether it runs")
    parser.add_argument("--seeds", type=int, default=5, help="default %(default)s")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    options, _ = parser.parse_known_args(argv)
    try:
        import torch_pruning  # noqa: F401
    except ImportError:
        print("torch-pruning is not installed (the extra `bench`); skipped")
        return 0
    torch.set_num_threads(1)
    setting = Setting(width=0.125, side=32, epochs=1, tuning_epochs=1, clips=(4, 2, 2), repeats=3)
    setting, seeds = (setting, 1) if options.quick else (Setting(), options.seeds)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "clips"
        generate_motion(folder, frames=8, fps=6, **dict(zip(("train", "val", "test"), setting.clips, strict=True)))
        shares = find_shares(setting)
        x = torch.randn(setting.shape)
        random = variants(setting.network().eval(), shares, [{"video": x, "label": torch.arange(len(x)) % 8}])
        times = latencies(random, x, setting.repeats)
        results = [run_seed(0, folder, setting, shares, None)]
        rates = {name: each["rate"] for name, each in results[0].items()}
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
            jobs = [pool.submit(run_seed, seed, folder, setting, shares, rates) for seed in range(1, seeds)]
            results += [job.result() for job in jobs]
    rows = table(results, times)
    printed = Table(*rows[0])
    for row in rows[1:]:
        printed.add_row(*row)
    Console().print(printed)
    if options.json:
        content = {"times": times, "shares": {" ".join(map(str, key)): value for key, value in shares.items()}}
        options.json.write_text(json.dumps(content | {"results": results}), encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(to_markdown(rows, seeds), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
