"""The command `scalevec`, from its first moment: to load torch takes seconds, in which it may be interrupted too."""

import sys


def main() -> int:
    try:
        from scalevec.cli import main as run
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return run()
