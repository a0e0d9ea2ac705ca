"""Saving and restoring state with Orbax.

A work directory holds ``pretrained/`` (backbone and public class embeddings before
the first round) and ``checkpoints/<round>/`` (the server; the clients' heads are in
:mod:`fedfr_jax.runtime.client_states`).
"""
from __future__ import annotations

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import serialization

from fedfr_jax.errors import InputError

PyTree = Any


class RoundCheckpoints:
    """Checkpoints of one run; use as a context manager.

    Args:
      workdir: the run's work directory.
      keep: checkpoints to keep.
    """

    def __init__(self, workdir, *, keep: int = 2):
        self._folder = pathlib.Path(workdir).absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(self._folder, options=ocp.CheckpointManagerOptions(
            max_to_keep=keep))

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self._manager.close()  # waits for a checkpoint under way

    def save(self, round_index: int, state: PyTree) -> None:
        """Starts saving ``state`` as it is after ``round_index`` rounds."""
        if self._manager.latest_step() == round_index:
            return
        self._manager.save(round_index, args=ocp.args.StandardSave(
            serialization.to_state_dict(state)))

    def wait(self) -> None:
        """Returns when the checkpoint under way is complete."""
        self._manager.wait_until_finished()

    def latest(self) -> int | None:
        """Number of rounds done in the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def restore(self, example: PyTree) -> PyTree:
        """The newest checkpoint.

        Args:
          example: state of the same structure and shapes (values are not looked at).

        Raises:
          InputError: there is none, or it does not fit ``example``.
        """
        step = self._manager.latest_step()
        if step is None:
            raise InputError(f"{self._folder} holds no checkpoint; start without --resume")
        return _fitting(example, f"{self._folder}/{step}", lambda like: self._manager.restore(
            step, args=ocp.args.StandardRestore(like)))


def save_pytree(folder, tree: PyTree) -> None:
    """Writes one pytree into a folder, replacing what was there."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(pathlib.Path(folder).absolute(), {"tree": serialization.to_state_dict(
            jax.device_get(tree))}, force=True)


def load_pytree(folder, example: PyTree) -> PyTree:
    """Reads what :func:`save_pytree` wrote.

    Args:
      folder: where it is.
      example: a pytree of the same structure and shapes.

    Raises:
      InputError: the folder is missing, or does not fit ``example``.
    """
    folder = pathlib.Path(folder).absolute()
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; it should be a checkpoint folder")
    with ocp.StandardCheckpointer() as checkpointer:
        return _fitting(example, folder, lambda like: checkpointer.restore(
            folder, {"tree": like})["tree"])


def _fitting(example: PyTree, where, restore) -> PyTree:
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, serialization.to_state_dict(example))
    try:
        found = restore(like)
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise InputError(f"{where} is not a checkpoint of these settings (model, clients and "
                         f"identities must be the same as when it was saved): {error}") from error
    return serialization.from_state_dict(example, found)
