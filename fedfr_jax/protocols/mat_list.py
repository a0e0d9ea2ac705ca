"""Reads a MATLAB file in a process of its own: SciPy's reader may crash on a damaged one.

Run as a script by :func:`fedfr_jax.protocols.tinyface.read_id_list`, and needs nothing of this
package. Prints one JSON object: ``names`` and ``ids``, or ``error``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from scipy import io

MOST_ENTRIES = 10_000_000
_MOST_MEMORY = 8 << 30


def main(path: str, prefix: str) -> dict[str, Any]:
    """The variables ``<prefix>_set`` and ``<prefix>_ids`` of a file."""
    wanted = (f"{prefix}_set", f"{prefix}_ids")
    try:
        shapes = {name: shape for name, shape, _ in io.whosmat(path)}
        for name in wanted:
            if name not in shapes:
                return {"error": f"has no variable {name}; is it TinyFace's list?"}
            if np.prod(shapes[name], dtype=float) > MOST_ENTRIES:
                return {"error": f"{name} has the shape {shapes[name]}"}
        content = io.loadmat(path, variable_names=wanted)
        return {
            "names": [_text(item) for item in np.ravel(content[wanted[0]])],
            "ids": np.ravel(content[wanted[1]]).astype(float).tolist(),
        }
    except NotImplementedError as error:
        return {"error": f"{error}; save it again in MATLAB with save -v7"}
    except Exception as error:  # the reader raises anything on damaged files
        return {"error": f"cannot be read as a MATLAB file: {str(error)[:200]}"}


def _text(item: Any) -> str:
    """A cell's text, which SciPy wraps in arrays."""
    for _ in range(4):
        if isinstance(item, np.ndarray) and item.size == 1:
            item = item.ravel()[0]
    if not isinstance(item, str):
        raise ValueError(f"an entry of the list of images is no text: {str(item)[:80]!r}")
    return str(item)


def _limit_memory() -> None:
    try:
        import resource  # noqa: PLC0415 - not on every system

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    except (ImportError, ValueError, OSError):
        pass


if __name__ == "__main__":
    _limit_memory()
    print(json.dumps(main(*sys.argv[1:])))
