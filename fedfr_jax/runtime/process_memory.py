"""Memory of this process. Without JAX, so that programs that do not use it can be measured, too."""

from __future__ import annotations

import pathlib
import resource


def resident_bytes() -> float:
    """Memory that this process has at the moment."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return float(pages * resource.getpagesize())
    except OSError:  # not Linux
        return peak_bytes()


def peak_bytes() -> float:
    """The most memory that this process has had.

    On Linux this is not ``ru_maxrss``: that number starts at the peak of the parent process, so
    that a small program that a large one has started seems to be as large.
    """
    try:
        status = pathlib.Path("/proc/self/status").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # not Linux, or a kernel that does not tell
        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
