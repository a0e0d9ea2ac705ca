"""The cohort engine: many clients' updates in one compiled program.

The engine knows nothing about faces. It is given what one client does, as a
pure function, and lays the cohort out on the hardware: clients are sorted by
the work they have, cut into chunks that ``lax.scan`` goes through, each chunk
holds ``lanes`` clients side by side under ``jax.vmap``, and every device of the
mesh takes its share of each chunk (``shard_map`` outermost). What clients send
to the server is averaged as it comes, so that memory holds lanes x model and
not cohort x model.

Clients of unequal size meet in static shapes through :meth:`Lane.repeat`, a loop
whose length is data: it runs as long as any lane of the chunk has work, and a
lane that is done keeps its state.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "clients"  # of the device mesh
_LANES = "lanes"  # of vmap

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Lane:
    """Where one client update runs; handed to it by the engine.

    Attributes:
      active: bool scalar, False for a client that only fills up a chunk.
      neighbours: clients that run side by side with this one, itself included.
    """

    active: jax.Array
    neighbours: int

    def repeat(self, times, body: Callable[[jax.Array, PyTree], PyTree], state: PyTree) -> PyTree:
        """``for i in range(times): state = body(i, state)`` with a traced ``times``.

        Args:
          times: int scalar, may differ between clients.
          body: maps (step number, state) to the next state.
          state: pytree of arrays.
        """
        times = jnp.where(self.active, times, 0)
        # The longest lane sets the bound. It is the same for all lanes, so vmap
        # leaves the loop's condition a scalar and selects only where lanes ended.
        bound = lax.pmax(times, _LANES)

        def step(i, state):
            new = body(i, state)
            if self.neighbours == 1:  # nobody to wait for
                return new
            return jax.tree.map(lambda n, o: jnp.where(i < times, n, o), new, state)

        return lax.fori_loop(0, bound, step, state)


ClientUpdate = Callable[[Lane, PyTree, PyTree], tuple[PyTree, jax.Array, PyTree]]


def make_mesh(devices=None) -> Mesh:
    """One mesh axis, ``clients``, over the given devices (default: all)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies a pytree of arrays to every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def for_each_client(update: ClientUpdate, shared: PyTree, clients: PyTree, work: jax.Array, *,
                    mesh: Mesh, lanes: int) -> tuple[PyTree, jax.Array, PyTree]:
    """Runs ``update`` for every client and averages what they send.

    Args:
      update: ``(lane, shared, client) -> (sent, weight, kept)``: ``sent`` is averaged
        over clients with ``weight`` (scalar), ``kept`` comes back per client.
      shared: pytree, the same for all clients.
      clients: pytree of arrays with a leading axis C.
      work: (C,) how much each client has to do, in any unit; clients with alike
        work share a chunk, so that little of it is padding.
      mesh: from :func:`make_mesh`.
      lanes: clients side by side on one device.

    Returns:
      (weighted average of ``sent``, total weight, ``kept`` stacked over C). The
      average is not a number if the total weight is zero.
    """
    count, devices = work.shape[0], mesh.size
    slots = lanes * devices
    chunks = -(-count // slots)
    # Longest first, and fillers (a copy of some client, inactive) last.
    order = jnp.argsort(-work)
    order = jnp.concatenate([order, jnp.zeros(chunks * slots - count, order.dtype)])
    active = jnp.arange(chunks * slots) < count

    def fold(x):
        return x.reshape(chunks, slots, *x.shape[1:])

    rows = jax.tree.map(lambda x: fold(x[order]), clients)

    def one(shared, client, active):
        sent, weight, kept = update(Lane(active, lanes), shared, client)
        return sent, jnp.where(active, weight, 0.0).astype(jnp.float32), kept

    def one_chunk(shared, totals, chunk):
        sent, weight, kept = jax.vmap(one, (None, 0, 0), axis_name=_LANES)(shared, *chunk)
        total = jax.tree.map(lambda t, s: t + jnp.tensordot(weight, s.astype(jnp.float32), 1),
                             totals[0], sent)
        return (total, totals[1] + weight.sum()), kept

    def on_one_device(shared, rows, active):
        example = jax.tree.map(lambda x: x[0, 0], (rows, active))
        sent = jax.eval_shape(
            lambda s, c, a: jax.vmap(one, (None, 0, 0), axis_name=_LANES)(
                s, *jax.tree.map(lambda x: x[None], (c, a)))[0], shared, *example)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape[1:], jnp.float32), sent)
        totals, kept = lax.scan(lambda t, c: one_chunk(shared, t, c),
                                (zero, jnp.float32(0)), (rows, active))
        return lax.psum(totals, AXIS), kept

    # check_vma=False: with it on, jax.grad inside would sum the gradient of the
    # replicated model over devices, and local training would stop being local.
    (total, weight), kept = jax.shard_map(
        on_one_device, mesh=mesh, in_specs=(P(), P(None, AXIS), P(None, AXIS)),
        out_specs=(P(), P(None, AXIS)), check_vma=False)(shared, rows, fold(active))
    place = jnp.argsort(order[:count])
    kept = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count][place], kept)
    average = jax.tree.map(lambda t: t / weight, total)
    return average, weight, kept


def map_blocks(fn: Callable[[PyTree, PyTree], PyTree], shared: PyTree, rows: PyTree, *,
               mesh: Mesh, block: int) -> PyTree:
    """Applies ``fn`` to blocks of rows, the blocks spread over the mesh.

    Args:
      fn: ``(shared, rows of one block) -> results``, leading axes alike.
      shared: pytree, the same for all blocks.
      rows: pytree of arrays with a leading axis N.
      mesh: from :func:`make_mesh`.
      block: rows per call and device; bounds memory.

    Returns:
      Results with a leading axis N.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    block = min(block, -(-count // mesh.size))
    slots = block * mesh.size
    blocks = -(-count // slots)

    def fold(x):
        padding = [(0, blocks * slots - count)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(blocks, slots, *x.shape[1:])

    def on_one_device(shared, rows):
        return lax.map(lambda r: fn(shared, r), rows)

    out = jax.shard_map(on_one_device, mesh=mesh, in_specs=(P(), P(None, AXIS)),
                        out_specs=P(None, AXIS), check_vma=False)(
                            shared, jax.tree.map(fold, rows))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], out)
