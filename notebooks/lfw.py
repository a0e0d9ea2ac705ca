# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Real faces
#
# The same method on a data set of your own: a folder with one folder of images per person,
# insightface's RecordIO, or tensorflow-datasets. `FEDFR_LFW` names a folder with `train.rec` and
# `train.idx` (and, if there, `lfw.bin` with `lfw_bin_labels.npy`); without it, faces are generated
# and written as a RecordIO file first, so that the notebook shows the way.

# %%
import os
import pathlib
import tempfile

import jax
import numpy as np
from PIL import Image

from fedfr_jax import Experiment, run, use_cpu_devices
from fedfr_jax.config import resolve
from fedfr_jax.data import open_source
from fedfr_jax.data.recordio_format import write_recordio

use_cpu_devices(0)
SMALL = os.environ.get("FEDFR_NOTEBOOK") == "small"
jax.devices()

# %% [markdown]
# ## Where the images are


# %%
def generated_recordio(folder, people):
    source = open_source(resolve({"data": {"image_size": 48, "generated": {
        "identities": people, "images_per_identity": (32, 36)}}}).data)
    write_recordio(folder, source.read(np.arange(len(source.labels))), source.labels)
    return folder


REAL = os.environ.get("FEDFR_LFW", "")
root = REAL or str(generated_recordio(pathlib.Path(tempfile.mkdtemp()), 40 if SMALL else 160))
root = pathlib.Path(root)

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
              "held_out_identities": 8 if SMALL else 40, "held_out_pairs": 60 if SMALL else 600}
if (root / "lfw_bin_labels.npy").exists():
    data |= {"verification_sets": ("lfw.bin",), "verification_labels": ("lfw_bin_labels.npy",)}

# %%
few = SMALL or not REAL
base = {
    "data": data | {"split": split},
    "model": {"depth": 10, "widths": (16, 32, 64, 128), "embedding": 64},
    "pretrain": {"epochs": 1 if SMALL else 20, "batch_size": 32, "lr": 0.02},
    "fed": {"num_clients": (3 if SMALL else 8) if few else 12, "rounds": 2 if SMALL else 6,
            "batch_size": 32, "hard_threshold": 0.6, "lr": 1e-2, "local_epochs": (4, 3, 2),
            "lr_decay_epochs": ()}}

# %% [markdown]
# ## Looking at the data before training

# %%
with Experiment(base, fed={"rounds": 0}, pretrain={"epochs": 0}) as look:
    faces, clients = look.faces(4, 8), look.sim.split.clients
    print("training images per client:", clients.sizes)
Image.fromarray(faces)

# %% [markdown]
# ## Train and evaluate

# %%
result = run("fedfr", base)

# %%
for table in result.tables():
    display(table)

# %%
plots = result.plots()
display(*[plot for name, plot in plots.items() if name.startswith(("roc", "gains-veri"))])
