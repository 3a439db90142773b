"""``spectral predict``: predictions of any file from a checkpoint alone; what they are, the checkpoint's task says."""

import argparse

import torch

from common.training.checkpoints import CheckpointError
from common.training.task import TaskModule, load_module


def main(args: list[str]) -> int:
    """``spectral predict``; returns 1 if a file could not be read.

    Raises:
        CheckpointError: the checkpoint cannot be used, or does not say how a file becomes the network's input.
        ValueError: the device cannot be used, or an option is out of its range.
        FileExistsError: a file to write is there, and there is no ``--force``.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--checkpoint")
    checkpoint = first.parse_known_args(args)[0].checkpoint
    module = None if checkpoint is None else load_module(checkpoint)
    options = _parser(module).parse_args(args)
    assert module is not None  # the parser has asked for it
    if module.spec is None or module.output_names is None:
        raise CheckpointError(
            f"the checkpoint lacks {module.output} names and what makes a file the network's input: "
            "it was trained without a data module of this project"
        )
    try:
        module.to(options.device)
    except (RuntimeError, AssertionError) as error:  # torch has no common type for a device that is not there
        raise ValueError(f"--device {options.device} cannot be used: {error}") from error
    return module.predict(options)


def _parser(module: TaskModule | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spectral predict",
        description="Predict from a checkpoint alone. "
        + ("With --checkpoint, --help shows the options of its task too." if module is None else ""),
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="file, folder of files, .txt list; also frame folders")
    parser.add_argument("--checkpoint", required=True, help="checkpoint file, or the folder of a run (its best.ckpt)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, mps"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that are written")
    if module is not None:
        module.add_predict_arguments(parser)
    return parser
