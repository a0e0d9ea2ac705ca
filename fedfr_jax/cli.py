"""What the commands share."""
from __future__ import annotations

import contextlib
import sys

from fedfr_jax.errors import InputError


@contextlib.contextmanager
def reports_input_errors():
    """Ends the program with one readable line where input is bad; other errors pass."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
