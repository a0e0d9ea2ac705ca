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
# A grid of methods (or settings) and seeds. Finished cells are kept in the work directory and not
# run again, so a row can be added later, and an interrupted grid goes on.

# %% [markdown]
# `SOURCE` says where to install fedfr_jax from if it is not installed: a clone, as here (on Colab:
# `!git clone ADDRESS /content/fedfr_jax` in a cell before), a wheel, or `git+https://...`. What is
# there of jax, jaxlib, flax and numpy is left as it is.

# %%
SOURCE = "/content/fedfr_jax"

import importlib.metadata
import importlib.util
import subprocess
import sys

if not getattr(importlib.util.find_spec("fedfr_jax"), "origin", None):  # a mere folder has none
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in (
        "jax", "jaxlib", "flax", "numpy") if importlib.util.find_spec(name)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", SOURCE, *pins], check=True)
    importlib.invalidate_caches()

# %%
import os
import pathlib
import tempfile

import jax
import pandas as pd

import fedfr_jax
from fedfr_jax.ablation import comparison, grid, sweep
from fedfr_jax.ablation.rows import FEDFR, PARTS
from fedfr_jax.config import merged

fedfr_jax.use_cpu_devices(0)  # on a CPU: one device per core
jax.devices()

# %%
SMALL = os.environ.get("FEDFR_NOTEBOOK") == "small"
base = {
    "data": {"image_size": 32, "generated": {"identities": 56 if SMALL else 140,
                                             "images_per_identity": (32, 32)},
             "split": {"held_out_identities": 16 if SMALL else 40,
                       "held_out_pairs": 60 if SMALL else 600,
                       "identities_per_client": (6, 6), "verification_images": 6}},
    "model": {"depth": 4, "widths": (16, 32, 64, 64), "embedding": 32},
    "pretrain": {"epochs": 1 if SMALL else 12, "batch_size": 32, "lr": 0.02},
    "fed": {"num_clients": 3 if SMALL else 6, "rounds": 1 if SMALL else 3, "batch_size": 32,
            "lr": 5e-3, "local_epochs": (3, 2), "lr_decay_epochs": (), "hard_threshold": 0.8},
    "eval": {"every": 0}}
if jax.default_backend() == "cpu":  # elsewhere it is measured what is fastest
    base["engine"] = {"lanes": 1, "conv": "custom"}
seeds = (0, 1) if SMALL else (0, 1, 2)
folder = pathlib.Path(os.environ.get("FEDFR_ABLATION") or tempfile.mkdtemp())

# %% [markdown]
# ## Methods
#
# One call runs methods over seeds, which draw the people, the split and the training. A run that
# fails does not stop the others; `failures` says which did.

# %%
found = fedfr_jax.compare_methods(["fedfr", "fedavg"], base, folder, seeds=seeds)
assert not found.failures, found.failures

# %% [markdown]
# Mean ± standard deviation over the seeds; in brackets the difference to FedFR, seed by seed. In a
# grid as small as this most differences are within the noise of the seeds; * marks those beyond it.

# %%
for table in found.tables():
    display(table)

# %% [markdown]
# ## Switches
#
# A row is a name and the settings it changes. `fedfr_jax.ablation.rows` has those of the paper:
# `BASELINES`, `PARTS`, `SWITCHES`. Here: FedFR without its contrastive term, and with a tenth of
# that term's weight. FedFR itself is there already, so only the new cells are run.

# %%
rows = [FEDFR, *[row for row in PARTS if row[0] == "FedFR without contrastive"],
        ("FedFR, weak contrast", {"method": {"fedfr": {"contrastive_weight": 0.5}}})]
rows = rows[::2] if SMALL else rows
found = grid.run_grid(grid.make_cells(base, rows, seeds), folder)
assert not found.failures, found.failures

# %%
display(found.tables()[0])

# %% [markdown]
# The same as a data frame, one line per cell; here its means:

# %%
frame = pd.DataFrame(found.rows()).drop(columns="seed")
frame.groupby("method", sort=False).mean().round(2).T

# %% [markdown]
# ## When does personalization pay?
#
# When clients differ. Here every client gets a camera of its own: a colour cast, low light and
# blur, with strengths drawn for each client; public people have a plain camera. There are more
# people and clients than above, and no transform, which a client's few images are not enough to
# learn. Above zero the clients' own models are better than the shared one.

# %%
more = {"data": {"generated": {"identities": 56 if SMALL else 200}},
        "fed": {"num_clients": 3 if SMALL else 10, "lr": 1e-2, "local_epochs": (4, 3)},
        "method": {"fedfr": {"transform": "none"}}}
strengths = (0.0, 1.0) if SMALL else (0.0, 0.5, 1.0)
rows = sweep.shift_rows(strengths, {"colour": 1.0, "low_light": 0.3, "blur": 0.2})
shifted = grid.run_grid(grid.make_cells(merged(base, more), rows, seeds), folder / "shift")
assert not shifted.failures, shifted.failures

# %%
sweep.gain_plot(shifted)

# %%
shifted.models  # of the first row; in brackets the gain over the global model

# %% [markdown]
# ## Plots

# %%
display(*comparison.drawings(found)[:3])
