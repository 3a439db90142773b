"""`python -m papers.dtf.reproduce`: the tables and figures of the DTF paper; see `common.reporting.reproduce`."""

import sys
from pathlib import Path

from common.reporting.reproduce import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent, "papers.dtf.figures"))
