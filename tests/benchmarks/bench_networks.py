"""Times whole networks of the papers beside networks of torchvision and pytorchvideo, and counts what they need.

    python -m tests.benchmarks.bench_networks [--quick] [--json] [--markdown FILE]

The networks take turns in one run. Inference is of one clip of 16 x 112 x 112 in float32, in the fastest of several
forms: as it is and in channels-last memory, and for library networks both with their normalisations folded into the
convolutions by torch.fx, as ours do by themselves. Training is a step of two clips, forward and backward. Memory is the
most that is held at once of the tensors that PyTorch makes in that step, beside input and weights. Multiply-adds are of
one clip and include everything (the full count of `common.evaluation.complexity`).
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.fx.experimental.optimization import fuse

from common.evaluation.complexity import count
from common.evaluation.latency import measure_latency, peak_allocated
from common.reporting.ledger import Network
from tests.networks import SPEED, ChannelsLast

CLIP = (1, 3, 16, 112, 112)
REFERENCE = "torchvision R3D-18"
PREAMBLE = """\
# Whole networks on a CPU

Measured by `python -m tests.benchmarks.bench_networks --markdown FILE` in one run in which the networks took turns, in
float32: inference of one clip of 16 x 112 x 112, in the faster of two memory orders and, for library networks, with
normalisations folded into the convolutions where that is faster; a training step of two clips.
Memory: tensors held at once in that step. Only the ratios mean something elsewhere.
"""
COLUMNS = {
    "parameters": ("parameters (M)", "{:.1f}"),
    "macs": ("multiply-adds (G)", "{:.1f}"),
    "inference_ms": ("inference (ms)", "{:.0f}"),
    "inference_ratio": ("/ R3D-18", "{:.2f}"),
    "training_ms": ("training step (ms)", "{:.0f}"),
    "training_ratio": ("/ R3D-18", "{:.2f}"),
    "training_mb": ("memory in training (MB)", "{:.0f}"),
}


def folded(network: nn.Module) -> nn.Module:
    """A copy of a library network in evaluation with its normalisations folded into its convolutions."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and type(module).forward is nn.Conv3d.forward:
            module.__class__ = nn.Conv3d  # torch.fx folds no subclass
    network = fuse(network)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in network.modules())
    return network


def measure(names: Sequence[str], repeats: int) -> dict[str, dict[str, Any]]:
    """What `COLUMNS` names, for the networks of `SPEED` with these names."""
    torch.manual_seed(0)
    networks = {name: Network(*SPEED[name]).build().eval() for name in names}
    forms = {(name, "as it is"): network for name, network in networks.items()}
    library = {name: folded(net) for name, net in networks.items() if name.startswith(("torchvision", "pytorchvideo"))}
    forms |= {(name, "folded"): network for name, network in library.items()}
    forms |= {(name, "channels last"): ChannelsLast(network).eval() for name, network in networks.items()}
    forms |= {(name, "folded, channels last"): ChannelsLast(network).eval() for name, network in library.items()}
    clip, clips = torch.randn(CLIP), torch.randn(2, *CLIP[1:])
    inference = measure_latency({"\n".join(key): form for key, form in forms.items()}, clip, repeats, warmup=2)
    timed = {name: [form for other, form in forms if other == name] for name in networks}
    del forms, library
    trained = {name: network.train() for name, network in networks.items()}
    training = measure_latency(trained, clips, max(2, repeats // 2), warmup=1, backward=True)
    found: dict[str, dict[str, Any]] = {}
    for name, network in networks.items():
        times = {form: inference[f"{name}\n{form}"].seconds for form in timed[name]}
        form = min(times, key=times.__getitem__)
        complexity = count(network, CLIP)
        found[name] = {
            "parameters": complexity.params / 1e6,
            "macs": complexity.macs_full / 1e9,
            "inference_ms": 1000 * times[form],
            "form": form,
            "training_ms": 1000 * training[name].seconds,
            "training_mb": peak_allocated(network, clips, backward=True) / 1e6,
        }
    for values in found.values():
        for kind in ("inference", "training"):
            values[f"{kind}_ratio"] = values[f"{kind}_ms"] / found[REFERENCE][f"{kind}_ms"]
    return found


def machine() -> str:
    """The processor, the threads and the version of PyTorch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'' if threads == 1 else 's'}, PyTorch {torch.__version__}"


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """The table as Markdown, with the machine."""
    lines = [f"| network | {' | '.join(title for title, _ in COLUMNS.values())} |", "|---|" + "--:|" * len(COLUMNS)]
    for name, values in found.items():
        cells = [form.format(values[key]) for key, (_, form) in COLUMNS.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([PREAMBLE, f"{machine()}.", "", *lines, ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table; `--markdown` also writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three networks and few rounds")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    args = parser.parse_args(argv)
    names = [REFERENCE, "stft3d T-STFT", "srl C2D-18 + SRL-FFT"] if args.quick else list(SPEED)
    found = measure(names, 2 if args.quick else 7)
    if args.markdown:
        args.markdown.write_text(markdown(found), encoding="utf-8")
    if args.json:
        print(json.dumps({"machine": machine(), "networks": found}, indent=2))
        return
    table = Table("network", *(title for title, _ in COLUMNS.values()), title=machine())
    for name, values in found.items():
        table.add_row(name, *(form.format(values[key]) for key, (_, form) in COLUMNS.items()))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
