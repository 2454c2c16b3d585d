"""`python -m agentsys` is the command `agentsys`."""

import sys

from agentsys.cli import main

if __name__ == "__main__":
    sys.exit(main())
