"""Many clients, few of them at a time: sampling, packing, and the stored state of the others.

What is named here knows nothing about faces; docs/engine.md.
"""

from fedfr_jax.population.ragged import Packed, pack_ragged, pack_slots
from fedfr_jax.population.sampling import assign, needed_slots, read_schedule, sample_cohorts
from fedfr_jax.population.store import RowStore

__all__ = [
    "Packed",
    "RowStore",
    "assign",
    "needed_slots",
    "pack_ragged",
    "pack_slots",
    "read_schedule",
    "sample_cohorts",
]
