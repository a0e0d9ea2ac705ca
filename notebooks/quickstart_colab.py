# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # FedFR in ten minutes
#
# **FedFR** trains one generic face-recognition backbone together with many clients, none of which
# shares an image, and one personalized model per client. Here all clients are simulated, many at
# once, in one compiled program. The faces are generated, so nothing has to be downloaded.
#
# Runs on a TPU, a GPU or a CPU; *Runtime → Change runtime type* chooses one on Colab.

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

import jax
import numpy as np
import pandas as pd
from PIL import Image

import fedfr_jax

fedfr_jax.use_cpu_devices(0)  # on a CPU: one device per core
print(jax.__version__, jax.devices())

# %% [markdown]
# ## Settings
#
# A configuration is a nested dictionary; settings that are not given keep their defaults
# (`fedfr_jax/settings.py`). `FEDFR_NOTEBOOK=small` makes everything tiny, to see that it runs.
#
# Every client gets a camera of its own, with a colour cast, low light and a little blur; public
# people are taken with a plain camera. Without such differences the shared model is usually better
# than a client's own: there is little to gain from being different.

# %%
SMALL = os.environ.get("FEDFR_NOTEBOOK") == "small"
size = dict(people=56, clients=3, rounds=2, pretraining=1, pairs=60) if SMALL else dict(
    people=200, clients=8, rounds=6, pretraining=12, pairs=1500)
data = {"image_size": 32,
        "generated": {"identities": size["people"], "images_per_identity": (30, 34)},
        "split": {"held_out_identities": size["people"] // 4, "held_out_pairs": size["pairs"],
                  "identities_per_client": (4, 6) if SMALL else (6, 9),
                  "verification_images": 6},
        "degrade": {"per_client": True, "public": False,
                    "colour": 1.0, "low_light": 0.3, "blur": 0.2}}

# %%
base = {
    "data": data,
    "model": {"depth": 4, "widths": (16, 32, 64, 64), "embedding": 32},
    "pretrain": {"epochs": size["pretraining"], "batch_size": 32, "lr": 0.02},
    "fed": {"num_clients": size["clients"], "rounds": size["rounds"], "batch_size": 32,
            "lr": 1e-2, "local_epochs": (4, 3), "lr_decay_epochs": (), "hard_threshold": 0.8},
    "method": {"fedfr": {"transform": "none"}}}

# %% [markdown]
# ## Train
#
# One call pretrains, trains and evaluates a method; `fedfr_jax.METHODS` holds all of them.

# %%
fedfr = fedfr_jax.run("fedfr", base)

# %% [markdown]
# The second method begins with the same pretrained backbone.

# %%
fedavg = fedfr_jax.run("fedavg", base)

# %% [markdown]
# ## The faces
#
# One row per public person. Identities differ in shape and colour; images of one person differ in
# pose, light, occlusion and noise.

# %%
with fedfr_jax.open_run(fedfr.folder) as opened:
    faces = opened.faces()
Image.fromarray(faces)

# %% [markdown]
# ## Rounds
#
# The loss has several terms. The contrastive one begins in the second round, when a client has a
# previous model to stay away from, so that the total rises then. All of it is a data frame, with
# the images and the seconds of each round; those of the first include compiling it.

# %%
plots = fedfr.plots()
plots["loss"]

# %%
fedfr.rounds()[["loss", "images", "seconds"]].round(2)

# %% [markdown]
# A client trains on its own images and on the public ones that resemble them, the hard negatives:

# %%
plots["hard-negatives"]

# %% [markdown]
# ## Results
#
# *pretrained* is the backbone before the first round, *global* the average after the last,
# *personalized* each client's own model, on its own registered people.

# %%
for table in fedfr.tables():
    display(table)

# %% [markdown]
# Both methods side by side: the share of genuine pairs that are accepted where one impostor pair
# in a thousand is (TAR @ FAR 1e-3), mean over the clients and the client that does worst.

# %%
tar = pd.concat({name: result.clients()["verification_tar@0.001"]
                 for name, result in (("FedFR", fedfr), ("FedAvg", fedavg))})
tar.groupby(level=0, sort=False).agg(["mean", "min"]).round(3)

# %% [markdown]
# ## ROC

# %%
next(plot for name, plot in plots.items() if name.startswith("roc-personalized"))

# %% [markdown]
# ## Who gains
#
# Every bar is a client: its personalized model minus the global one, on the same pairs. The numbers
# below the bars are the clients'. FedFR's transform of the embedding is left out here, because a
# client's few hundred images are too few to learn it; with a strong backbone it pays, see
# `docs/results.md`.

# %%
next(plot for name, plot in plots.items() if name.startswith("gains-verification"))

# %% [markdown]
# What sets them apart are their cameras. Here are the clients that gain most and least:

# %%
gains = (tar["personalized"] - tar["global"])["FedFR"].sort_values()
with fedfr_jax.open_run(fedfr.folder) as opened:
    test = opened.sim.held_out
rows = [test.images[test.clients == client][::3][:8] for client in gains.index[[-1, 0]]]
Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows]))

# %%
worse = (tar["personalized"] < tar["global"]).groupby(level=0, sort=False).mean()
for name, share in worse.items():
    print(f"{name}: {100 * share:.0f} % of the clients would be better off with the global model")

# %% [markdown]
# ## Step by step
#
# A run can be opened again, to look at its state, which is plain arrays, and to go on with it,
# stopping between rounds. Nothing is pretrained again.

# %%
with fedfr_jax.open_run(fedavg.folder, fed={"rounds": size["rounds"] + 2}) as opened:
    rows = opened.run(rounds=1)
    print("class embeddings of client 0:", opened.head(0)["class_embeddings"].shape)
    rows += opened.run()
    images = opened.sim.held_out.images[:5]
    print("features under its own model:", opened.embed(images, client=0).shape)
pd.DataFrame(rows)[["round", "loss", "images_per_second", "flops_per_client"]]
