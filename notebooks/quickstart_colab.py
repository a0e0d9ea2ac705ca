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
# On Colab, first clone the repository into `/content`, in a cell of its own:
# `!git clone ADDRESS /content/fedfr_jax`. Its requirements are ranges that hold what Colab has;
# jax, jaxlib and numpy are asked for as they are, so that pip leaves them alone.

# %%
import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys

# %%
if importlib.util.find_spec("fedfr_jax") is None:
    places = (pathlib.Path.cwd().parent, pathlib.Path.cwd(), pathlib.Path("/content/fedfr_jax"))
    checkout = next((place for place in places if (place / "setup.py").exists()), None)
    assert checkout, "fedfr_jax is not here: clone it to /content/fedfr_jax first"
    keep = [f"{d.name}=={d.version}" for d in importlib.metadata.distributions()
            if d.name in ("jax", "jaxlib", "numpy")]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", str(checkout), *keep], check=True)
    sys.path.insert(0, str(checkout))

# %%
import jax
import numpy as np
import pandas as pd
from PIL import Image

from fedfr_jax import Experiment, run, use_cpu_devices

use_cpu_devices(0)  # on a CPU: one device per core
print(jax.__version__, jax.devices())

# %% [markdown]
# ## Settings
#
# A configuration is a nested dictionary; whatever is left out has its default
# (`fedfr_jax/settings.py`). `FEDFR_NOTEBOOK=small` makes everything tiny, to see that it runs.

# %%
SMALL = os.environ.get("FEDFR_NOTEBOOK") == "small"
size = dict(people=56, clients=3, rounds=2, pretraining=1, pairs=60) if SMALL else dict(
    people=240, clients=8, rounds=10, pretraining=12, pairs=1500)
data = {"image_size": 32 if SMALL else 48,
        "generated": {"identities": size["people"], "images_per_identity": (30, 34)},
        "split": {"held_out_identities": size["people"] // 4, "held_out_pairs": size["pairs"],
                  "identities_per_client": (4, 6) if SMALL else (8, 12),
                  "verification_images": 6}}

# %%
base = {
    "data": data,
    "model": {"depth": 10, "widths": (16, 32, 64, 64), "embedding": 32},
    "pretrain": {"epochs": size["pretraining"], "batch_size": 32, "lr": 0.02},
    "fed": {"num_clients": size["clients"], "rounds": size["rounds"], "batch_size": 32,
            "lr": 5e-3, "local_epochs": (4, 3, 2), "lr_decay_epochs": (), "hard_threshold": 0.8}}

# %% [markdown]
# ## Train
#
# One call trains and evaluates a method; `fedfr_jax.methods.METHODS` lists all of them.

# %%
fedfr = run("fedfr", base)

# %%
fedavg = run("fedavg", base)

# %% [markdown]
# ## The faces
#
# One row per public person. Identities differ in shape and colour; images of one person differ in
# pose, light, occlusion and noise.

# %%
with Experiment(base, fed={"rounds": 0}, pretrain={"epochs": 0}) as look:
    faces = look.faces()
Image.fromarray(faces)

# %% [markdown]
# ## Loss and hard negatives
#
# A client trains on its own images and on the public ones that resemble them.

# %%
plots = fedfr.plots()
plots["loss"]

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


# %%
def summary(result):
    models, rates = result.summary["models"], {}
    for name, found in models.items():
        spread = found["personalized"]["verification_tar"]["0.001"]
        rates[name] = {"1:1 TAR @ FAR 1e-3": spread["mean"], "worst tenth": spread["worst10"]}
    return pd.DataFrame(rates).T


pd.concat({"FedFR": summary(fedfr), "FedAvg": summary(fedavg)}).round(3)

# %% [markdown]
# ## ROC

# %%
next(plot for name, plot in plots.items() if name.startswith("roc-personalized"))

# %% [markdown]
# ## Who gains
#
# Every bar is a client: its personalized model minus the pretrained one, on the same pairs.
# Not all clients gain: here a client's transform of the embedding has a few hundred images to learn
# from. `method={"fedfr": {"transform": "none"}}` leaves it out, see `docs/results.md`.

# %%
next(plot for name, plot in plots.items() if name.startswith("gains-verification"))

# %%
tar = fedfr.per_client["verification_tar@0.001"]
worse = np.mean(tar["personalized"] < tar["global"])
print(f"{100 * worse:.0f} % of the clients would be better off with the global model")

# %% [markdown]
# ## Step by step
#
# An `Experiment` stops between rounds, to look at the state, which is plain arrays.

# %%
with Experiment(base, method="fedavg", fed={"rounds": 2}) as experiment:
    rows = experiment.run(rounds=1)
    print(rows[0]["loss"], experiment.head(0)["class_embeddings"].shape)
    rows += experiment.run()
pd.DataFrame(rows)[["round", "loss", "images_per_second", "flops_per_client"]]
