# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From ten clients to a hundred thousand
#
# Population and cohort are different numbers: all heads are stored in a memory-mapped file, and
# only the round's cohort is copied to the devices. So the cost of a round follows the cohort, and
# clients that never took part cost nothing.

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
import time

import jax
import matplotlib.pyplot as plt
import pandas as pd

import fedfr_jax
from fedfr_jax.runtime.process_memory import peak_bytes

fedfr_jax.use_cpu_devices(0)  # on a CPU: one device per core
SMALL = os.environ.get("FEDFR_NOTEBOOK") == "small"
jax.devices()

# %% [markdown]
# ## Settings
#
# Each client has 48 images of 4 people, rendered on the device when its turn comes; 120 more people
# are there to pretrain on, and 60 are set aside to see how well the global model does on people it
# never met. No public images are used in the rounds: how many hard negatives there are differs from
# one draw of people to the next, and so would the times.


# %%
def settings(population, cohort, rounds):
    people, public, held_out = 4 * population, 120, 60
    return {
        "data": {"image_size": 32, "images": "render", "generated": {
                     "identities": people + public + held_out, "images_per_identity": (12, 12)},
                 "split": {"client_fraction": people / (people + public),
                           "identities_per_client": (4, 4), "verification_images": 4,
                           "held_out_identities": held_out, "held_out_pairs": 600}},
        "model": {"depth": 4, "widths": (8, 16, 32, 32), "embedding": 32},
        "pretrain": {"epochs": 1 if SMALL else 10, "batch_size": 32, "lr": 0.02},
        "fed": {"num_clients": population, "rounds": rounds, "batch_size": 16, "lr": 0.005,
                "local_epochs": (2,), "lr_decay_epochs": (), "public_data": "off"},
        "population": {"cohort": cohort}, "eval": {"clients": min(20, population)},
        "engine": {"lanes": 1, "conv": "custom"} if jax.default_backend() == "cpu" else {}}


# %%
def measure(population, cohort, rounds):
    started = time.time()
    with fedfr_jax.Experiment(settings(population, cohort, rounds)) as experiment:
        ready = time.time() - started
        warm = pd.DataFrame(experiment.run())[1:]  # the first round is compiled
        models = experiment.evaluate()["models"]
        used = os.stat(experiment.folder / "heads" / "process-0-of-1.rows").st_blocks * 512
    rank1 = models["personalized"]["personalized"]["rank1"]["mean"]
    return {"clients": population, "cohort": cohort, "start (s)": ready,
            "round (s)": warm["seconds"].median(), "images of a round": warm["images"].median(),
            "held-out people (%)": 100 * models["global"]["generic"]["held-out people"]["accuracy"],
            "own people, rank-1 (%)": 100 * rank1, "heads (MB)": used / 1e6,
            "memory so far (GB)": peak_bytes() / 1e9}


# %% [markdown]
# ## More clients, the same cohort
#
# Own people: those of up to 20 clients drawn from all. Of a large population most never took part;
# they have the global model. Of 10 clients everybody takes part in every round. Memory is this
# process' on the host, the most so far.

# %%
populations = [10, 100] if SMALL else [10, 100, 10_000, 100_000]
rounds = 2 if SMALL else 4
by_population = pd.DataFrame([measure(n, 10, rounds) for n in populations])
by_population.round(3)

# %% [markdown]
# ## Other cohorts of the largest population

# %%
cohorts = [4] if SMALL else [5, 20]
by_cohort = pd.DataFrame([measure(populations[-1], n, rounds) for n in cohorts])
by_cohort = pd.concat([by_cohort, by_population[-1:]]).sort_values("cohort", ignore_index=True)
by_cohort.round(3)

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
axes[0].plot(by_population["clients"], by_population["round (s)"], "o-")
axes[0].set(xscale="log", ylim=(0, None), xlabel="clients", ylabel="seconds per round",
            title="cohort of 10")
axes[1].plot(by_cohort["cohort"], by_cohort["round (s)"] / by_cohort["cohort"], "o-")
axes[1].set(ylim=(0, None), xlabel="cohort", ylabel="seconds per client and round",
            title=f"{populations[-1]:,} clients")
plt.show()
