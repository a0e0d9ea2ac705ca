"""FedProx: a penalty keeps local training close to the model that the server sent.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, equation 2:
``F_i(w) + weight / 2 ||w - w^t||^2``.
"""

import dataclasses

from fedfr_jax.methods.recipe import Recipe, half_squared_distance


@dataclasses.dataclass(frozen=True)
class Options:
    weight: float = 0.01  # mu of the paper, which tries 0.001 to 1


RECIPE = Recipe(
    title="FedProx",
    source="Li et al., MLSys 2020, equation 2",
    options=Options,
    penalty=lambda o, params, received: o.weight * half_squared_distance(params, received),
)
