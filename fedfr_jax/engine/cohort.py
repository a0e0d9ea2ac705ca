"""The cohort engine: many clients' updates in one compiled program.

The engine knows nothing about faces. It takes the update of one client, a pure
function, and lays the cohort out on the hardware. The clients of a round fill
*slots*, the same number on every device of the mesh (``shard_map`` outermost); a slot
may be empty. Each device sorts its own clients by their work, runs them in
chunks of ``lanes`` clients in parallel under ``jax.vmap``, longest first, and stops
when no client is left. The values sent to the server are averaged as they arrive, so
memory holds lanes x model and not cohort x model; what clients keep is written
back in place. The devices communicate once, to add up their sums.

:meth:`Lane.repeat` allows clients of unequal size with static shapes. It is a loop of
traced length: it runs as long as any lane of the chunk has work, and a lane that is
done keeps its state.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int

from fedfr_jax.engine.precision import sum_type
from fedfr_jax.engine.unrolled import unrolled

AXIS = "clients"  # of the device mesh
_LANES = "lanes"  # of vmap

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Lane:
    """Where one client update runs; passed to it by the engine.

    Attributes:
      active: bool scalar, False for a slot without a client.
      neighbours: clients that run side by side with this one, itself included.
      unrolled: a step is a copy for each of them, and not one operation for all.
    """

    active: jax.Array
    neighbours: int
    unrolled: bool = False

    def repeat(self, times, body: Callable[[jax.Array, PyTree], PyTree], state: PyTree) -> PyTree:
        """``for i in range(times): state = body(i, state)`` with a traced ``times``.

        Args:
          times: int scalar, may differ between clients.
          body: maps (step number, state) to the next state.
          state: pytree of arrays.
        """
        times = jnp.where(self.active, times, 0)
        if self.neighbours == 1:  # no other lane to wait for
            return lax.fori_loop(0, times, body, state)
        # The longest lane sets the bound. It is the same for all lanes, so under vmap the
        # loop's condition stays a scalar; only lanes that are done need a select.
        bound = lax.pmax(times, _LANES)

        def step(i, state):
            new = body(i, state)
            return jax.tree.map(lambda n, o: jnp.where(i < times, n, o), new, state)

        if self.unrolled:
            step = unrolled(step, _LANES, jnp.zeros_like(bound), state)
        return lax.fori_loop(0, bound, step, state)


# (lane, shared, device, client, state) -> (sent, weight, state, metrics)
ClientUpdate = Callable[
    [Lane, PyTree, PyTree, PyTree, PyTree], tuple[PyTree, jax.Array, PyTree, PyTree]
]


class CohortResult(NamedTuple):
    """What :func:`for_each_client` returns.

    Attributes:
      average: weighted average of what the clients sent, at least in float32; zero if the total
        weight is zero.
      weight: total weight, scalar.
      state: the clients' new state, a leading axis C; that of an empty slot is as it was.
      metrics: the clients' metrics, stacked over C; zero for an empty slot.
    """

    average: PyTree
    weight: jax.Array
    state: PyTree
    metrics: PyTree


def make_mesh(devices=None) -> Mesh:
    """One mesh axis, ``clients``, over the given devices (default: all)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicate(tree: PyTree, mesh: Mesh | None = None) -> PyTree:
    """Copies a pytree of arrays to every device of the mesh (None: to all devices)."""
    mesh = make_mesh() if mesh is None else mesh
    return jax.device_put(tree, NamedSharding(mesh, P()))


def spread(tree: PyTree, mesh: Mesh | None = None) -> PyTree:
    """Divides a pytree of arrays with a leading axis over the devices of the mesh.

    Args:
      tree: arrays with the entries of this process' devices, in their order (with one
        process: all entries). Every device takes the same number.
      mesh: from :func:`make_mesh`; None: all devices.
    """
    mesh = make_mesh() if mesh is None else mesh
    sharding = NamedSharding(mesh, P(AXIS))
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def placed_shapes(tree: PyTree, mesh: Mesh, *, divided: bool) -> PyTree:
    """Shapes, types and shardings that arrays have once they are placed: to compile before.

    Args:
      tree: arrays of all processes, or their shapes.
      mesh: from :func:`make_mesh`.
      divided: as by :func:`spread`; else as by :func:`replicate`.
    """
    sharding = NamedSharding(mesh, P(AXIS) if divided else P())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, jax.dtypes.canonicalize_dtype(x.dtype), sharding=sharding
        ),
        tree,
    )


def addressable(tree: PyTree) -> PyTree:
    """Replicated arrays as arrays that this process can use without the others."""

    def own(x):
        alone = not isinstance(x, jax.Array) or x.is_fully_addressable
        return x if alone else x.addressable_data(0)

    return jax.tree.map(own, tree)


def local_rows(tree: PyTree) -> PyTree:
    """The part of a spread pytree that is on this process' devices, as NumPy arrays."""

    def rows(x):
        if jax.process_count() == 1:
            return np.asarray(x)
        shards = sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)
        return np.concatenate([np.asarray(s.data) for s in shards])

    return jax.tree.map(rows, tree)


def _chunk_order(work, taken, lanes):
    """(positions (chunks * lanes,), number of chunks with work): longest first.

    Positions that pad the last chunk are beyond the slots.
    """
    slots = work.shape[0]
    order = jnp.argsort(jnp.where(taken, -work, jnp.iinfo(work.dtype).max))
    filler = -slots % lanes
    order = jnp.concatenate([order, jnp.full(filler, slots, order.dtype)])
    return order, -(-jnp.sum(taken) // lanes)


def _rows(tree: PyTree, at: jax.Array) -> PyTree:
    """The rows (lanes, ...) at some slots; beyond the last slot, that one."""
    if len(at) == 1:  # XLA:CPU compiles a slice much faster than a gather, for every array
        return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, at[0], 1), tree)
    return jax.tree.map(lambda x: x.at[at].get(mode="clip"), tree)


def _with_rows(tree: PyTree, at: jax.Array, active: jax.Array, new: PyTree) -> PyTree:
    """``tree`` with ``new`` rows (lanes, ...) at the active ones of some slots."""
    if len(at) == 1:  # a chunk of one client has one, see _chunk_order()
        return jax.tree.map(lambda x, n: lax.dynamic_update_slice_in_dim(x, n, at[0], 0), tree, new)

    def put(x, n):  # results of empty slots are dropped
        return x.at[jnp.where(active, at, len(x))].set(n, mode="drop")

    return jax.tree.map(put, tree, new)


def _side_by_side(update: ClientUpdate, lanes: int, unroll: bool) -> Callable[..., tuple]:
    """``update`` for ``lanes`` clients: arguments and results with a leading axis."""

    def one(shared, device, client, state, active):
        sent, weight, state, metrics = jax.tree.map(  # numbers are fine, too
            jnp.asarray, update(Lane(active, lanes, unroll), shared, device, client, state)
        )
        return sent, jnp.where(active, weight, 0).astype(sum_type(sent)), state, metrics

    def alone(shared, device, *rows):
        # No vmap over a single client: XLA's products are slower even with a batch axis of 1.
        result = one(shared, device, *jax.tree.map(lambda x: x[0], rows))
        return jax.tree.map(lambda x: x[None], result)

    return alone if lanes == 1 else jax.vmap(one, (None, None, 0, 0, 0), axis_name=_LANES)


def _all_of_one_device(side_by_side, lanes, shared, device, clients, state, work, taken):
    """Runs the chunks of one device in turn; sums what is sent over all devices."""
    slots = work.shape[0]
    order, chunks = _chunk_order(work, taken, lanes)

    def one_chunk(i, carry):
        total, weights, state, metrics = carry
        at = lax.dynamic_slice_in_dim(order, i * lanes, lanes)
        active = (at < slots) & taken.at[at].get(mode="clip")
        sent, weight, new, measured = side_by_side(
            shared, device, _rows(clients, at), _rows(state, at), active
        )
        total = jax.tree.map(
            lambda t, s: t + jnp.tensordot(weight, s.astype(t.dtype), 1), total, sent
        )
        state, metrics = _with_rows((state, metrics), at, active, (new, measured))
        return total, weights + weight.sum(), state, metrics

    side_by_side = jax.jit(side_by_side)  # traced once, for its shapes and in the loop
    example = _rows((clients, state), jnp.zeros(lanes, int))
    sent, weight, new, measured = jax.eval_shape(
        side_by_side, shared, device, *example, jnp.ones(lanes, bool)
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(new, example[1])  # it is written in place
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape[1:], weight.dtype), sent)
    metrics = jax.tree.map(lambda m: jnp.zeros((slots, *m.shape[1:]), m.dtype), measured)
    total, weights, state, metrics = lax.fori_loop(
        0, chunks, one_chunk, (zero, jnp.zeros((), weight.dtype), state, metrics)
    )
    return lax.psum((total, weights), AXIS), state, metrics


def for_each_client(
    update: ClientUpdate,
    shared: PyTree = (),
    device: PyTree = (),
    clients: PyTree = (),
    state: PyTree = (),
    work: Int[Array, " C"] | None = None,
    taken: Bool[Array, " C"] | None = None,
    *,
    mesh: Mesh | None = None,
    lanes: int = 1,
    unroll: bool = False,
) -> CohortResult:
    """Runs ``update`` for every client and averages what they send.

    Args:
      update: ``(lane, shared, device, client, state) -> (sent, weight, state, metrics)``:
        ``sent`` is averaged over clients with ``weight`` (scalar); the new ``state`` replaces
        the old one, with the same shapes and types; ``metrics`` are small arrays. Any of them
        may be ``()``.
      shared: pytree, the same for all clients.
      device: pytree of arrays with a leading axis that is divided over the devices: data
        shared by the clients of one device.
      clients, state: pytrees of arrays with a leading axis C, the slots; device k has the
        k-th part of them. C is a multiple of the number of devices.
      work: (C,) int, work of each client, in any unit. Clients with similar work share
        a chunk, so that little of it is padding. None: all have the same.
      taken: (C,) bool, False for an empty slot. It sets the number of chunks: under an
        outer vmap leave it unbatched, or every chunk would copy all ``state``. None: all are.
      mesh: from :func:`make_mesh`; None: all devices.
      lanes: clients side by side on one device.
      unroll: the steps of :meth:`Lane.repeat` are independent copies for the lanes in one program,
        and what is around them stays under vmap. Compiling takes as many times longer.

    Returns:
      The average, the total weight, the new state and the metrics; also as a tuple.

    Raises:
      ValueError: ``clients`` and the others have no common leading axis, or it cannot be
        divided over the devices.
    """
    mesh = make_mesh() if mesh is None else mesh
    slots = _slots((clients, state, work, taken), mesh.size)
    work = jnp.ones(slots, jnp.int32) if work is None else work
    taken = jnp.ones(slots, bool) if taken is None else taken
    on_one_device = functools.partial(
        _all_of_one_device, _side_by_side(update, lanes, unroll), lanes
    )
    # check_vma=False: otherwise jax.grad inside would sum the gradient of the
    # replicated model over devices, and local training would no longer be local.
    (total, weight), state, metrics = jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(P(), *[P(AXIS)] * 5),
        out_specs=(P(), P(AXIS), P(AXIS)),
        check_vma=False,
    )(shared, device, clients, state, work, taken)
    average = jax.tree.map(lambda t: t / jnp.where(weight > 0, weight, 1), total)
    return CohortResult(average, weight, state, metrics)


def _slots(trees: PyTree, devices: int) -> int:
    """C, the common leading axis of all arrays."""
    found = {jnp.shape(x)[:1] for x in jax.tree.leaves(trees)}
    if len(found) != 1 or () in found:
        raise ValueError(
            "clients, state, work and taken must be arrays with one common leading axis, the "
            f"slots; theirs are {sorted(map(str, found)) or 'none'}"
        )
    [(slots,)] = found
    if slots % devices:
        raise ValueError(
            f"{slots} slots cannot be divided over {devices} devices; add empty ones, with "
            "taken=False, up to a multiple"
        )
    return slots


def on_each_device(
    fn: Callable[[PyTree, PyTree], PyTree], shared: PyTree, device: PyTree, *, mesh: Mesh
) -> PyTree:
    """Applies ``fn(shared, a device's part of device)`` on every device, without communication.

    Args:
      shared: pytree, the same for all devices.
      device: pytree of arrays with a leading axis that is divided over the devices.

    Returns:
      The results, concatenated along their leading axes and divided in the same way.
    """
    return jax.shard_map(
        fn, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(AXIS), check_vma=False
    )(shared, device)


def loop_blocks(
    fn: Callable[[jax.Array], PyTree], positions: jax.Array, count, *, block: int
) -> PyTree:
    """Computes the first ``count`` of N results, in blocks; the work is proportional to ``count``.

    Args:
      fn: maps (B,) positions to results with a leading axis B.
      positions: (N,) arguments of ``fn``, passed in blocks.
      count: int scalar, may be traced; results after the last block used stay zero.
      block: positions per call; bounds memory.

    Returns:
      Results with a leading axis N.
    """
    size = positions.shape[0]
    block = max(1, min(block, size))
    padded = -(-size // block) * block
    positions = jnp.pad(positions, (0, padded - size), mode="edge") if size else positions
    fn = jax.jit(fn)  # traced once, for its shapes and in the loop

    def one_block(i, table):
        new = fn(lax.dynamic_slice_in_dim(positions, i * block, block))
        return jax.tree.map(
            lambda t, n: lax.dynamic_update_slice_in_dim(t, n, i * block, 0), table, new
        )

    some = positions[:block] if size else jax.ShapeDtypeStruct((block,), positions.dtype)
    shapes = jax.eval_shape(fn, some)
    table = jax.tree.map(lambda s: jnp.zeros((padded, *s.shape[1:]), s.dtype), shapes)
    if size:
        table = lax.fori_loop(0, -(-count // block), one_block, table)
    return jax.tree.map(lambda t: t[:size], table)


def map_blocks(
    fn: Callable[[PyTree, jax.Array], PyTree], shared: PyTree, count: int, *, mesh: Mesh, block: int
) -> PyTree:
    """Applies ``fn`` to the positions 0 ... count - 1, in blocks, spread over the mesh.

    Args:
      fn: ``(shared, positions (B,)) -> results`` with a leading axis B.
      shared: pytree, the same for all blocks; the arrays that the positions refer to.
      count: static number of positions.
      mesh: from :func:`make_mesh`.
      block: positions per call and device; bounds memory.

    Returns:
      Results with a leading axis ``count``.
    """
    per_device = -(-count // mesh.size)

    def on_one_device(shared):
        first = lax.axis_index(AXIS) * per_device
        positions = jnp.minimum(first + jnp.arange(per_device), count - 1)
        return loop_blocks(lambda p: fn(shared, p), positions, per_device, block=block)

    out = jax.shard_map(on_one_device, mesh=mesh, in_specs=P(), out_specs=P(AXIS), check_vma=False)(
        shared
    )
    return jax.tree.map(lambda x: x[:count], out)
