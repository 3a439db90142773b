"""What the papers share: spectral layers, backbones, data modules, training, evaluation, comparison, reporting."""

import sys
from importlib.util import find_spec

if find_spec("torch") is None:
    raise ModuleNotFoundError(
        f"PyTorch is not installed for {sys.executable}. In the clone: make setup, then source .venv/bin/activate"
    )
