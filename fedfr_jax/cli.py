"""What the commands share."""
from __future__ import annotations

import contextlib
import sys

from fedfr_jax.errors import InputError


@contextlib.contextmanager
def reports_input_errors():
    """Ends the program with one readable line where input is bad or training diverged.

    Other errors pass: they are the program's own, and a traceback helps.
    """
    try:
        yield
    except (InputError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
