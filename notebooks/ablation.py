# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ablations
#
# A grid of methods or switches times seeds. Finished cells are kept in the work directory and not
# run again, so a row can be added later, and an interrupted grid goes on.

# %%
import os
import pathlib
import tempfile

import jax
import pandas as pd

from fedfr_jax import use_cpu_devices
from fedfr_jax.ablation import comparison, grid
from fedfr_jax.ablation.rows import FEDFR, PARTS

use_cpu_devices(0)
jax.devices()

# %%
SMALL = os.environ.get("FEDFR_NOTEBOOK") == "small"
base = {
    "data": {"image_size": 32, "generated": {"identities": 40 if SMALL else 160,
                                             "images_per_identity": (30, 34)},
             "split": {"held_out_identities": 10 if SMALL else 40,
                       "held_out_pairs": 60 if SMALL else 600,
                       "identities_per_client": (4, 6), "verification_images": 6}},
    "model": {"depth": 10, "widths": (16, 32, 64, 64), "embedding": 32},
    "pretrain": {"epochs": 1 if SMALL else 12, "batch_size": 32, "lr": 0.02},
    "fed": {"num_clients": 3 if SMALL else 8, "rounds": 1 if SMALL else 6, "batch_size": 32,
            "lr": 5e-3, "local_epochs": (3, 2), "lr_decay_epochs": (), "hard_threshold": 0.8}}
seeds = (0, 1) if SMALL else (0, 1, 2)

# %% [markdown]
# ## Rows
#
# A row is a name and what it changes of the base. `fedfr_jax.ablation.rows` has those of the paper:
# `BASELINES`, `PARTS`, `SWITCHES`.

# %%
rows = [FEDFR, ("FedAvg", {"method": {"name": "fedavg"}})]
rows += [row for row in PARTS if row[0].startswith(("FedFR without", "FedFR, no public"))]
rows = rows[:3] if SMALL else rows
folder = pathlib.Path(os.environ.get("FEDFR_ABLATION") or tempfile.mkdtemp())
cells = grid.make_cells(base, rows, seeds)
found = grid.run_grid(cells, folder)

# %% [markdown]
# ## Tables
#
# Mean ± standard deviation over the seeds; in brackets the difference to FedFR, seed by seed.

# %%
for table in comparison.result_tables(found):
    display(table)

# %% [markdown]
# The same as a data frame, one line per cell:

# %%
frame = pd.DataFrame(found.rows())
means = frame.groupby("method", sort=False).mean(numeric_only=True)
means.round(2).T

# %% [markdown]
# ## Plots

# %%
drawn = {plot.title: plot for plot in comparison.drawings(found)}
display(*list(drawn.values())[:3])

# %% [markdown]
# ## Adding a row
#
# Only the new cells are run. Here: FedFR with a tenth of the weight of its contrastive term.

# %%
rows.append(("FedFR, weak contrast", {"method": {"fedfr": {"contrastive_weight": 0.5}}}))
found = grid.run_grid(grid.make_cells(base, rows, seeds), folder)
display(comparison.result_tables(found)[0])
