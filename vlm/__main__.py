"""`python -m vlm`: the same as the `vlm` command."""

import sys

from vlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
