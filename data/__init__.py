"""Demo data, and commands that prepare, check, browse, resize and pack datasets."""

import common  # noqa: F401  # it says how to install what is missing
