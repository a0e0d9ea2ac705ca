"""Data prepared once: checked, packed, divided, described; see ``docs/formats.md``.

python -m fedfr_jax.prepare --config=folder --config.data.root=FACES --out=DIR
python -m fedfr_jax.prepare --source=folder --root=FACES --describe --out=DIR
python -m fedfr_jax.prepare duplicates --source=folder --root=FACES
python -m fedfr_jax.prepare labels --bin=lfw.bin --source=recordio --root=LFW --out=labels.npy
"""

from __future__ import annotations


def command() -> None:
    """The command ``fedfr-prepare``."""
    from fedfr_jax.prepare.command import command as run  # noqa: PLC0415 - importing starts nothing

    run()
