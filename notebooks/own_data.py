# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A data set of your own
#
# The same method on images from files: a folder with one folder of images per person,
# insightface's RecordIO, or tensorflow-datasets. Here faces are generated and written as a RecordIO
# file first, so that the notebook runs without a download. With `FEDFR_LFW` it takes real
# ones: it names a folder with `train.rec` and `train.idx` (and, if there, `lfw.bin` with
# `lfw_bin_labels.npy`).

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
import numpy as np
from PIL import Image

import fedfr_jax
from fedfr_jax.config import resolve
from fedfr_jax.data import open_source
from fedfr_jax.data.recordio_format import write_recordio

fedfr_jax.use_cpu_devices(0)  # on a CPU: one device per core
SMALL = os.environ.get("FEDFR_NOTEBOOK") == "small"
jax.devices()

# %% [markdown]
# ## Where the images are


# %%
def generated_recordio(folder, people):
    source = open_source(resolve({"data": {"image_size": 48, "generated": {
        "identities": people, "images_per_identity": (24, 28)}}}).data)
    write_recordio(folder, source.read(np.arange(len(source.labels))), source.labels)
    return folder


REAL = os.environ.get("FEDFR_LFW", "")
root = REAL or str(generated_recordio(pathlib.Path(tempfile.mkdtemp()), 40 if SMALL else 130))
root = pathlib.Path(root)
print("faces:", f"those in {REAL}" if REAL else "generated ones")

# %% [markdown]
# Two other sources, with which everything below stays the same:
# `{"source": "folder", "root": ...}` reads `root/person/image.jpg`, as in the next cell;
# `{"source": "tfds", "name": "lfw", "root": ...}` reads what tensorflow-datasets has prepared in
# the folder `root`.


# %%
def as_folders(data, folder, people):
    source = open_source(resolve({"data": data}).data)
    for i in np.flatnonzero(source.labels < people):
        path = pathlib.Path(folder) / f"person {source.labels[i]}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.read(np.array([i]))[0]).save(path)
    return {**data, "source": "folder", "root": str(folder)}


some = as_folders({"source": "recordio", "root": str(root), "image_size": 48},
                  tempfile.mkdtemp(), people=3)
opened = open_source(resolve({"data": some}).data)
print("people:", len(set(opened.labels)), "images:", len(opened.labels))

# %%
data = {"source": "recordio", "root": str(root), "image_size": 48}
split = {"client_fraction": 1.0, "unused_public": True, "client_images": (10, 10_000),
         "identities_per_client": (4, 12), "verification_images": 5, "max_training_images": 60,
         "held_out_identities": 1900, "held_out_pairs": 600}
if not REAL:
    split |= {"client_fraction": 0.5, "identities_per_client": (4, 5),
              "held_out_identities": 8 if SMALL else 30, "held_out_pairs": 60 if SMALL else 600}
if (root / "lfw_bin_labels.npy").exists():
    data |= {"verification_sets": ("lfw.bin",), "verification_labels": ("lfw_bin_labels.npy",)}

# %%
few = SMALL or not REAL
base = {
    "data": data | {"split": split},
    "model": {"depth": 4, "widths": (16, 32, 64, 128), "embedding": 64},
    "pretrain": {"epochs": 1 if SMALL else 12, "batch_size": 32, "lr": 0.02},
    "fed": {"num_clients": (3 if SMALL else 8) if few else 12, "rounds": 2 if SMALL else 4,
            "batch_size": 32, "hard_threshold": 0.6, "lr": 1e-2, "local_epochs": (4, 3, 2),
            "lr_decay_epochs": ()}}

# %% [markdown]
# ## Looking at the data before training

# %%
with fedfr_jax.Experiment(base, fed={"rounds": 0}, pretrain={"epochs": 0}) as look:
    faces, clients = look.faces(4, 8), look.sim.split.clients
    print("training images per client:", clients.sizes)
Image.fromarray(faces)

# %% [markdown]
# ## Train and evaluate

# %%
result = fedfr_jax.run("fedfr", base)

# %%
for table in result.tables():
    display(table)

# %%
plots = result.plots()
display(*[plot for name, plot in plots.items() if name.startswith(("roc", "gains-veri"))])

# %% [markdown]
# ## The models
#
# The run stays in its folder. Opened again, it gives the features of any images of that size under
# the global model, or under a client's own.

# %%
with fedfr_jax.open_run(result.folder) as opened:
    some_faces = opened.sim.held_out.images[:6]
    print(opened.embed(some_faces).shape, opened.embed(some_faces, client=0).shape)
