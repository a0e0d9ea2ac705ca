"""A folder of images of your own: two methods over three seeds, and a method of your own."""

import dataclasses
import sys

import fedfr_jax

base = fedfr_jax.load_config("folder")
base.data.root = sys.argv[1]  # holds person/image.jpg

found = fedfr_jax.compare_methods(["fedavg", "fedfr"], base, seeds=(0, 1, 2))
print(found.tables()[0])

result = fedfr_jax.run("fedfr", base)
with fedfr_jax.open_run(result.folder) as run:
    images = run.sim.held_out.images  # or others, (N, S, S, 3) uint8
    print("features under client 3's model:", run.embed(images, client=3).shape)

# FedPer whose shared layers are held near those that the server sent.
per, prox = fedfr_jax.METHODS["fedper"], fedfr_jax.METHODS["fedprox"]
near = dataclasses.replace(per, title="Near FedPer", options=prox.options, penalty=prox.penalty)
fedfr_jax.register_method("near", near)
own = fedfr_jax.run("near", base, method={"near": {"weight": 0.1}})
print(own.rounds()[["loss", "images", "seconds"]])
