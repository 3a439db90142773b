"""``python -m papers.fdc3d.compress``, see :mod:`papers.fdc3d.command_line`.

Nothing is defined here, since ``papers.fdc3d.compress`` is the function.
"""

import sys

from papers.fdc3d.command_line import main

if __name__ == "__main__":
    sys.exit(main())
