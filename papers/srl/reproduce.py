"""`python -m papers.srl.reproduce`: the tables and figures of the SRL paper; see `common.reporting.reproduce`."""

import sys
from pathlib import Path

from common.reporting.reproduce import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent, "papers.srl.figures"))
