"""The ``spectral`` command: ``fit|validate|test --config recipe.yaml``, ``predict``, ``export``, ``compare``, ``runs``.

Every run gets a folder ``<trainer.default_root_dir>/<recipe name>/version_<n>`` of its own with the resolved recipe
(``config.yaml``), where it came from (``run.json``), the logs, ``last.ckpt`` and ``best.ckpt``; ``validate`` and
``test`` add ``result.json`` and the predictions. Torch and Lightning are imported by the commands that need them.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import pairwise
from typing import TYPE_CHECKING

from common.command_line import (
    USER_ERRORS,
    CommandParser,
    UsageError,
    debugging,
    did_you_mean,
    plain_warnings,
    report_error,
)
from common.training import arguments, run_folders

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from common.training.lightning_cli import SpectralCLI

COMMANDS = {
    "fit": "train a network by a recipe",
    "validate": "evaluate a checkpoint on the validation split",
    "test": "evaluate a checkpoint on the test split",
    "predict": "predict files with a trained network",
    "export": "write a trained network as ONNX, torch.export or safetensors",
    "compare": "train several methods under one protocol and compare them",
    "runs": "list runs with their scores",
}

HELP_OF_HELP = (
    "spectral COMMAND --help                lists the options of a command",
    "spectral fit --config RECIPE --help    lists those of the model and data of a recipe",
    "spectral --version                     prints the version; --debug shows the traceback of an error",
)

#: parsers that print their help before anything slow is imported, and the modules that do the work
PARSERS: dict[str, tuple[Callable[[], CommandParser], str]] = {
    "predict": (arguments.predict_parser, "common.training.predict"),
    "export": (arguments.export_parser, "common.training.export"),
    "compare": (arguments.compare_parser, "common.comparison.command"),  # it runs this command line itself
}


def run(args: list[str], callbacks: Sequence[Callback] = ()) -> SpectralCLI:
    """Run ``fit``, ``validate`` or ``test`` and return the finished command; errors are raised.

    Args:
        args: command line arguments, e.g. ``["test", "--config", "recipe.yaml", "--ckpt_path", "best"]``.
        callbacks: callbacks of the trainer in addition to those of the recipe.
    """
    from common.training import lightning_cli

    return lightning_cli.run(args, callbacks)


def main(args: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 for a failed run, 2 for wrong arguments, 143 and 130 for one that
    SIGTERM and SIGINT (Ctrl-C) ended.

    ``--debug``, or the environment variable SPECTRAL_DEBUG, shows tracebacks.
    """
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args or debugging()
    args = [arg for arg in args if arg != "--debug"]
    _find_own_modules(args)
    try:
        return _dispatch(args)
    except SystemExit as stop:  # --help, argparse's own errors, SIGTERM, and Lightning's answer to Ctrl-C
        if _is_sigterm(stop):
            print("stopped by SIGTERM; --ckpt_path last resumes the training", file=sys.stderr)
            return 128 + signal.SIGTERM
        if isinstance(stop.__context__, KeyboardInterrupt):
            return 128 + signal.SIGINT
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except user_errors() as error:
        if debug:
            raise
        return report_error(error)


def _dispatch(args: list[str]) -> int:
    command = args[0] if args else ""
    if command == "--version":
        print(f"spectral-video {version('spectral-video')}")
        return 0
    if command in ("-h", "--help"):
        print(_overview())
        return 0
    if command not in COMMANDS:
        what = f"unknown command {command!r}" if command else "a command is missing"
        raise UsageError(f"{what}; the commands are {', '.join(COMMANDS)}.{did_you_mean(command, COMMANDS)}")
    if command == "runs":
        return run_folders.main(args[1:])
    names_checkpoint = any(word.partition("=")[0] == "--checkpoint" for word in args)  # the help is that of its task
    if command in PARSERS and {"-h", "--help"} & set(args) and not names_checkpoint:
        PARSERS[command][0]().parse_args(args[1:])
    if command in PARSERS:
        module = importlib.import_module(PARSERS[command][1])
        with plain_warnings():
            return module.main(args[1:])
    from common.training import lightning_cli

    with plain_warnings():
        lightning_cli.run_command(_with_packaged_recipes(args))
    return 0


def _with_packaged_recipes(args: Sequence[str]) -> list[str]:
    """The arguments with the files that ``--config`` names found; see `find_packaged`."""
    words = list(args)
    for k, word in enumerate(words):
        if word.startswith("--config="):
            words[k] = f"--config={arguments.find_packaged(word.removeprefix('--config='))}"
        elif k and words[k - 1] in ("-c", "--config"):
            words[k] = arguments.find_packaged(word)
    return words


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: spectral COMMAND ...", "", *lines, "", *HELP_OF_HELP])


def user_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is written for the user; they end the command without a traceback."""
    errors = USER_ERRORS
    if "lightning" in sys.modules:
        from lightning.pytorch.utilities.exceptions import MisconfigurationException

        from common.training.processes import LostProcessError

        errors += (MisconfigurationException, LostProcessError)
    return errors


def _is_sigterm(stop: SystemExit) -> bool:
    if "lightning" not in sys.modules:
        return False
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    return isinstance(stop, SIGTERMException)


def _find_own_modules(args: Sequence[str]) -> None:
    """Make the modules of the current folder importable if the command line names one of them, as the class of an
    option or with ``--allow``. A recipe that names one does not suffice: it would run code from where the user stands.
    """
    typed = [found[1] for word in args if (found := re.match(r"(?:--[\w.+]+=)?([A-Za-z_]\w*)(?:\.\w+)+$", word))]
    allowed = [after for word, after in pairwise(args) if word == "--allow"]
    allowed += [word.partition("=")[2] for word in args if word.startswith("--allow=")]
    names = [name.partition(".")[0] for name in [*typed, *allowed]]
    if any(name and (os.path.isdir(name) or os.path.isfile(f"{name}.py")) for name in names):
        sys.path += [os.getcwd()] if os.getcwd() not in sys.path else []  # last, so that they replace nothing


if __name__ == "__main__":
    sys.exit(main())
