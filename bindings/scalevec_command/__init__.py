"""The command `scalevec`, from its first moment to its last: an interrupt while torch loads, or while Python ends, too."""

import signal
import sys


def main() -> int:
    try:
        from scalevec.cli import main as run
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    status = run()
    # The work is done and the status stands. Python takes its own handler away as it ends, and would die of the signal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return status
