"""``spectral export CHECKPOINT --format onnx|torch-export|safetensors``: a trained network for other programs.

The file appears only after it has been read back and agrees with the network. Class names, how a file becomes the
network's input, the module with its arguments, the recipe and the hash of the data go with it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from common.command_line import first_line
from common.datamodules.errors import ReadError
from common.datamodules.folders import UnusedFilesWarning, find_files
from common.datamodules.manifest import MANIFEST_FILE, Manifest
from common.limits import HINT
from common.plain_yaml import check_yaml
from common.training.arguments import EXPORT_SUFFIXES, export_parser
from common.training.checkpoints import MAX_CLAIMED, CheckpointError, building_what_a_file_says, find_checkpoint
from common.training.task import TRUSTED, TaskModule, check_stored_facts, load_module, module_class_of

MAX_TRIED = 20  # files of a run that may be missing or unreadable before random numbers are taken
ENTRY = "spectral"  # of the metadata
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}  # of the largest output


class ExportError(ValueError):
    """The network cannot be exported, or the exported one computes something else."""


def main(argv: list[str]) -> int:
    """The command; returns 0.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ExportError: the export failed or differs from the network; no file is left.
        FileExistsError: the file exists, and there is no ``--force``.
    """
    options = export_parser().parse_args(argv)
    module = load_module(options.checkpoint, (*TRUSTED, *options.allow))
    name = options.checkpoint.resolve().name if options.checkpoint.is_dir() else options.checkpoint.stem
    out = options.out or options.checkpoint.parent / f"{name}{EXPORT_SUFFIXES[options.format]}"
    if out.exists() and not options.force:
        raise FileExistsError(f"{out} exists; give another name, or --force to overwrite it")
    config = find_checkpoint(options.checkpoint).with_name("config.yaml")
    recipe = config.read_text(encoding="utf-8") if config.is_file() else None
    example = options.input or _own_file(module, config)
    difference = export(module, out, options.format, options.half, example, recipe)
    print(f"Written: {out} ({out.stat().st_size:,} bytes); largest difference from the network {difference:.1e}")
    print(f"Compared on {example or 'random numbers'}")
    return 0


def _own_file(module: TaskModule, config: Path) -> Path | None:
    """The first readable file among those that a run was trained with; None if its data are not there any more."""
    load_views: Any = getattr(module, "load_views", None)
    kind: Any = module.kind
    if load_views is None or not config.is_file():
        return None
    try:
        check_yaml(config)
        data = yaml.safe_load(config.read_text(encoding="utf-8")).get("data") or {}
        options = {"root": None, "manifest": None} | (data.get("init_args") or {})
        root = Path(options["root"] or ".")
        named = options["manifest"] or MANIFEST_FILE
        manifest = next((path for path in (root / named, Path(named)) if path.is_file()), None)
        if manifest is not None:
            files: Iterable[Path] = (root / entry.path for entry in Manifest.read(manifest, root).entries)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UnusedFilesWarning)
                files = find_files(root, kind) if options["root"] and not options["manifest"] else []
        for path in islice(files, MAX_TRIED):
            with contextlib.suppress(ReadError, OSError):
                load_views(path)
                return path
    except (ValueError, OSError, TypeError, AttributeError):  # no recipe of this project, or no data
        pass
    return None


def export(
    module: TaskModule,
    out: Path,
    kind: str = "onnx",
    half: bool = False,
    example: str | Path | None = None,
    recipe: str | None = None,
) -> float:
    """Write a module's network to a file, whole or not at all.

    Args:
        module: from a checkpoint, see :func:`~common.training.task.load_module`.
        out: the file; what is there is replaced.
        kind: ``onnx`` and ``torch-export`` hold the network, for any batch size; ``safetensors`` its weights.
        half: in half precision.
        example: a file that ``spectral predict`` would take; None: random numbers.
        recipe: of the training, as text; stored in the file.

    Returns:
        The largest difference of the outputs as a fraction of the largest output; of weights: 0.

    Raises:
        ExportError: the export fails, or differs from the network by more than 1e-4 (in half precision 2e-2).
    """
    if module.spec is None:
        raise CheckpointError("the checkpoint lacks how a file becomes the network's input; it cannot be exported")
    arguments = {name: value for name, value in module.hparams.items() if name not in ("pretrained", "imagenet")}
    about = {**module.about(), "arguments": arguments, "recipe": recipe}
    return export_network(module.network, _example(module, example), out, kind, half, about=about)


def export_network(
    network: nn.Module,
    x: Tensor,
    out: Path,
    kind: str = "onnx",
    half: bool = False,
    dynamic: Sequence[int] = (0,),
    about: dict[str, Any] | None = None,
) -> float:
    """Write a network with one input and one output to a file, whole or not at all; see :func:`export`.

    Args:
        network: it is put into evaluation mode and converted to the precision of the file.
        x: an example of the input, a batch of at least two.
        dynamic: the dimensions of the input that the file leaves open, the batch among them.
        about: is stored in the file.
    """
    dtype = torch.float16 if half else torch.float32
    network, x = network.eval().to(dtype), x.to(dtype)
    dimensions: dict[int, Any] = {d: torch.export.Dim.DYNAMIC if d else torch.export.Dim("batch") for d in dynamic}
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        temporary = Path(folder) / f"network{EXPORT_SUFFIXES[kind]}"
        try:
            with warnings.catch_warnings(), torch.inference_mode():
                warnings.simplefilter("ignore")
                run = _FORMATS[kind](network, x, temporary, dimensions, about or {})
        except Exception as error:  # exporters raise many types
            raise ExportError(f"{type(network).__name__} cannot be written as {kind}: {first_line(error)}") from error
        difference = max(_difference(network, run, batch) for batch in (x, x[:1], torch.cat([x, x[:1]])))
        if not difference <= TOLERANCE[dtype]:
            hint = "; half precision overflows here" if half and difference != difference else ""
            raise ExportError(
                f"the {kind} file differs from the network by {difference:.1e} of its largest output{hint}"
            )
        temporary.replace(out)
    return difference


def _example(module: TaskModule, path: str | Path | None) -> Tensor:
    """A batch of at least two inputs."""
    if path is None:
        generator = torch.Generator().manual_seed(0)
        return torch.randn((2, *module.input_shape[1:]), generator=generator)
    load_views: Any = getattr(module, "load_views", None)
    if load_views is None:
        raise ExportError(f"--input is for videos and images; {type(module).__name__} is compared on random numbers")
    views: Tensor = load_views(path)
    return torch.cat([views, views.flip(-1)]) if len(views) < 2 else views


def _difference(network: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> float:
    with torch.inference_mode():
        expected, found = network(x).float(), run(x).float()
    if found.shape != expected.shape:
        raise ExportError(f"the exported network makes {tuple(found.shape)} of {tuple(x.shape)}, not {expected.shape}")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _write_onnx(
    network: nn.Module, x: Tensor, path: Path, dynamic: dict[int, Any], about: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    options: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"], "verbose": False}
    program: Any = torch.onnx.export(network, (x,), dynamo=True, dynamic_shapes=(dynamic,), **options)
    program.save(str(path), external_data=False)
    model = onnx.load(str(path))
    model.metadata_props.add(key=ENTRY, value=json.dumps(about))
    onnx.save(model, str(path))
    return OnnxNetwork(path)


def _write_program(
    network: nn.Module, x: Tensor, path: Path, dynamic: dict[int, Any], about: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    with torch.no_grad():
        program = torch.export.export(network, (x.clone(),), dynamic_shapes=(dynamic,))
    torch.export.save(program, path, extra_files={f"{ENTRY}.json": json.dumps(about)})
    read: Any = torch.export.load(path).module()
    return lambda batch: read(batch)


def _write_weights(
    network: nn.Module, x: Tensor, path: Path, dynamic: dict[int, Any], about: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    from safetensors.torch import load_file, save_file

    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(state, path, metadata={ENTRY: json.dumps(about)})
    read = load_file(path)
    if wrong := [key for key, value in state.items() if not torch.equal(read[key], value)]:
        raise ExportError(f"{wrong[0]} is not as it was written")
    return network


_FORMATS: dict[str, Any] = {"onnx": _write_onnx, "torch-export": _write_program, "safetensors": _write_weights}


class OnnxNetwork(nn.Module):
    """A network in an ONNX file, run by onnxruntime on the CPU: (B, ...) -> its output, in the dtype of the input.

    Raises:
        CheckpointError: the file cannot be read, or onnxruntime is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        try:
            import onnxruntime

            onnxruntime.set_default_logger_severity(3)
            self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except ImportError as error:
            raise CheckpointError(f"{path}: onnxruntime is needed: pip install onnx onnxruntime") from error
        except Exception as error:
            raise CheckpointError(f"{path}: not an ONNX file that can be run ({error})") from error
        self.about = self.session.get_modelmeta().custom_metadata_map.get(ENTRY)

    def forward(self, x: Tensor) -> Tensor:
        taken = self.session.get_inputs()[0]
        dtype = torch.float16 if taken.type == "tensor(float16)" else torch.float32
        try:
            (output,) = self.session.run(None, {taken.name: x.detach().cpu().to(dtype).numpy()})
        except Exception as error:  # onnxruntime's errors have no base of their own
            raise RuntimeError(str(error)) from error
        return torch.from_numpy(output).to(x.dtype)


def load_onnx(path: str | Path, trusted_packages: Sequence[str] = TRUSTED) -> TaskModule:
    """The module of an ONNX file that ``spectral export`` wrote; its network is run by onnxruntime.

    Raises:
        CheckpointError: the file cannot be read, or lacks what ``spectral export`` writes into it.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"no checkpoint: {path} does not exist")
    network = OnnxNetwork(path)
    try:
        about = json.loads(network.about or "")
        class_path, arguments = str(about["class_path"]), about["arguments"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: not an ONNX file of `spectral export` ({error})") from error
    module_class = module_class_of(class_path, path, trusted_packages)
    try:
        with building_what_a_file_says():
            claimed = sum(tensor.numel() for tensor in module_class(**arguments).state_dict().values())
        if claimed > MAX_CLAIMED * Path(path).stat().st_size:
            raise CheckpointError(f"its arguments claim {claimed:,} weights; it is damaged; {HINT}")
        module = module_class(**arguments)
        module.output_names, module.spec = about["output_names"], about["spec"]
        check_stored_facts(module)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # what a damaged file asks for fails in many ways
        raise CheckpointError(f"{path}: not an ONNX file of `spectral export` ({first_line(error)})") from error
    module.network = network
    return module.eval()
