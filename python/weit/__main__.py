"""``python -m weit``: the command line."""

import sys

from weit.cli import main

if __name__ == "__main__":
    sys.exit(main())
