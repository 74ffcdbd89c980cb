"""The command ``pgmap``: ``python -m pgmap``."""

import signal
import sys

from pgmap._native import run_command


def main() -> int:
    # The command handles signals itself, as it does where no interpreter runs it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return run_command(["pgmap", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
