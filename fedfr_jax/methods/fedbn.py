"""FedBN: batch normalization (scales, shifts, statistics) stays with the client.

Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization",
ICLR 2021, section 3. For networks that have it: mobilefacenet, iresnet.
"""

import jax

from fedfr_jax.errors import InputError
from fedfr_jax.methods.recipe import Recipe


def _in_batch_norm(options, backbone, variables):
    modules = {path[1:-1] for path, _ in _leaves(variables["batch_stats"], "batch_stats")}
    if not modules:
        raise InputError(
            f"method.name is 'fedbn', but model.name={backbone.name!r} has no batch "
            "normalization; use mobilefacenet or iresnet, or the method fedavg"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: tuple(p.key for p in path)[1:-1] in modules, variables
    )


def _leaves(tree, prefix):
    return [
        ((prefix, *(p.key for p in path)), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


RECIPE = Recipe(title="FedBN", source="Li et al., ICLR 2021, section 3", private=_in_batch_norm)
