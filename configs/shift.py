"""When personalization pays: the demo with cameras that differ more and more between clients.

    python -m fedfr_jax.ablate --config=configs/shift.py --workdir=runs/shift

At strength 0 all cameras are the same; 1 is ``configs/quickstart.py`` itself. The report shows the
gain of the clients' own models over the global one against the strength.
"""

import pathlib

from ml_collections import ConfigDict

from fedfr_jax import load_config
from fedfr_jax.ablation.sweep import row_name, shift_rows


def get_config():
    c = ConfigDict()
    c.base = load_config(pathlib.Path(__file__).with_name("quickstart.py"))
    c.base.eval.every = 0
    degrade = c.base.data.degrade
    full = {name: degrade[name] for name in ("colour", "low_light", "blur")}
    c.rows = tuple(shift_rows((1.0, 0.5, 0.0), full))
    c.seeds = (0, 1, 2, 3, 4)
    c.vary = ("seed", "data.seed")
    c.reference = row_name(1.0)
    return c
