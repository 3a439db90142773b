"""`python -m papers.stft2d.reproduce`: tables and figures of the 2D STFT paper; see `common.reporting.reproduce`."""

import sys
from pathlib import Path

from common.reporting.reproduce import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent, "papers.stft2d.figures"))
