"""Becomes another program that never outlives the process which started it, however that one ends (on Linux).

Run by its path, in an interpreter without site packages: PARENT_PID OPEN_FILES PROGRAM [ARGUMENT…].
"""

from __future__ import annotations

import os
import sys
from typing import Final

CANNOT_START: Final = 127
"""The exit status for a program that can't be started, as shells have it."""
_PR_SET_PDEATHSIG: Final = 1


def main(parent_pid: int, open_files: int, command: list[str]) -> None:
    """Tie this process to its parent and become `command`."""
    import resource
    import signal

    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:
            sys.exit(CANNOT_START)  # It ended before we were tied to it.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and a new program would inherit that.
        signal.signal(number, signal.SIG_DFL)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = open_files if hard == resource.RLIM_INFINITY else min(open_files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        os.execv(command[0], command)  # noqa: S606 the very point
    except OSError as exc:
        sys.stderr.write(f"Error: {command[0]}: cannot be started: {exc.strerror}\n")
        sys.exit(CANNOT_START)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
