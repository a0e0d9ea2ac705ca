"""Data prepared once: checked, packed, divided, described; see ``docs/formats.md``."""

from __future__ import annotations


def command() -> None:
    """The command ``fedfr-prepare``."""
    from fedfr_jax.prepare.command import command as run  # noqa: PLC0415 - importing starts nothing

    run()
