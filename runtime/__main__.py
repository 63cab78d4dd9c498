"""`python -m starflow.runtime`: the command `starflow`, where no script folder is on PATH."""

import sys

from starflow.runtime.command_line import main

if __name__ == "__main__":
    sys.exit(main())
