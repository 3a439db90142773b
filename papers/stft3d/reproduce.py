"""`python -m papers.stft3d.reproduce`: the tables and figures of the X-STFT paper; see `common.reporting.reproduce`."""

import sys
from pathlib import Path

from common.reporting.reproduce import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent, "papers.stft3d.figures"))
