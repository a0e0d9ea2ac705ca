"""Saving and restoring state with Orbax.

A work directory holds ``pretrained/`` (backbone and public class embeddings before
the first round) and ``checkpoints/<round>/`` (the server; the clients' heads are in
:mod:`fedfr_jax.runtime.client_states`). Each holds a checksum of its content, which is compared
when it is read.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import serialization

from fedfr_jax.errors import DamagedError, InputError

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

PyTree = Any
FOLDER = "checkpoints"
_SET_ASIDE = "set-aside"
_LATER = ("message",)  # of ServerState
_CHECK = "sha256"  # beside the tree, so that Orbax writes it in the same transaction


def saved_rounds(workdir: str | os.PathLike) -> list[int]:
    """Round numbers of the complete checkpoints in a work directory, oldest first."""
    # Orbax names a folder by its number only when it is complete.
    return sorted(
        int(path.name) for path in (pathlib.Path(workdir) / FOLDER).glob("*") if path.name.isdigit()
    )


class RoundCheckpoints:
    """Checkpoints of one run; use as a context manager.

    Args:
      workdir: the run's work directory.
      keep: checkpoints to keep.
    """

    def __init__(self, workdir, *, keep: int = 2):
        self._workdir = pathlib.Path(workdir).absolute()
        self._folder, self._keep = self._workdir / FOLDER, keep
        self._manager: ocp.CheckpointManager | None = None  # once something is saved

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        if self._manager is not None:
            self._manager.close()

    def save(self, round_index: int, state: PyTree) -> list[int]:
        """Saves the ``state`` after ``round_index`` rounds, then deletes old checkpoints.

        Returns:
          The rounds whose checkpoints are on disk.
        """
        if self._manager is None:
            ocp = _orbax()
            # Old checkpoints are deleted here, after the new one is complete.
            options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        if round_index not in self._manager.all_steps():
            tree = _state_dict(jax.device_get(state))
            self._manager.save(
                round_index,
                args=_orbax().args.StandardSave({"tree": tree, _CHECK: _digest(tree, round_index)}),
                force=True,
            )
            self._manager.wait_until_finished()
        for old in sorted(self._manager.all_steps())[: -self._keep]:
            self._manager.delete(old)
        return sorted(self._manager.all_steps())

    def rounds(self) -> list[int]:
        """Round numbers of the complete checkpoints, oldest first."""
        return saved_rounds(self._workdir)

    def restore(self, example: PyTree, round_index: int | None = None) -> PyTree:
        """A checkpoint.

        Args:
          example: state of the same structure and shapes (values are ignored).
          round_index: which one; None: the newest.

        Raises:
          InputError: there is none.
          DamagedError: it is damaged, or does not fit ``example``.
        """
        rounds = self.rounds()
        if not rounds:
            raise InputError(
                f"{self._folder} holds no checkpoint: no round of the run was saved; "
                "train with --resume"
            )
        step = rounds[-1] if round_index is None else round_index
        return _restored(example, self._folder / str(step) / "default", step)

    def set_aside(self, round_index: int) -> pathlib.Path:
        """Moves a damaged checkpoint aside, before any is saved; returns its new folder."""
        target = self._workdir / _SET_ASIDE / f"checkpoint-{round_index}"
        if jax.process_index() == 0:
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(self._folder / str(round_index), target)
        return target


def newest_whole(
    checkpoints: RoundCheckpoints, example: PyTree, check: Callable[[int], None]
) -> tuple[int, PyTree, dict[int, str]] | None:
    """The newest checkpoint that is not damaged, with the clients' state of its round.

    Args:
      checkpoints: of the run.
      example: as for :meth:`RoundCheckpoints.restore`.
      check: raises DamagedError if the clients' state of a round is damaged.

    Returns:
      (round, server, round -> error of a newer checkpoint); None if there is no checkpoint.

    Raises:
      InputError: none of them can be used.
    """
    damaged: dict[int, str] = {}
    for round_index in reversed(checkpoints.rounds()):
        try:
            server = checkpoints.restore(example, round_index)
            check(round_index)
        except DamagedError as error:
            damaged[round_index] = str(error)
            continue
        return round_index, server, damaged
    if damaged:
        raise DamagedError(f"no checkpoint can be used: {next(iter(damaged.values()))}")
    return None


def _orbax() -> Any:
    import orbax.checkpoint  # noqa: PLC0415 (takes a second)

    return orbax.checkpoint


def save_pytree(folder, tree: PyTree) -> None:
    """Writes one pytree into a folder, replacing what was there."""
    tree = _state_dict(jax.device_get(tree))
    with _orbax().StandardCheckpointer() as checkpointer:
        checkpointer.save(
            pathlib.Path(folder).absolute(), {"tree": tree, _CHECK: _digest(tree)}, force=True
        )


def load_pytree(folder, example: PyTree) -> PyTree:
    """Reads what :func:`save_pytree` wrote.

    Args:
      folder: where it is.
      example: a pytree of the same structure and shapes.

    Raises:
      InputError: the folder is missing.
      DamagedError: it is damaged, or does not fit ``example``.
    """
    folder = pathlib.Path(folder).absolute()
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; it should be a checkpoint folder")
    return _restored(example, folder)


def digest_of(tree: PyTree) -> str:
    """SHA-256 of a pytree's content, as text."""
    return _digest(_state_dict(jax.device_get(tree))).tobytes().hex()


def _state_dict(tree: PyTree) -> PyTree:
    """Nested dicts of arrays, without later parts of a state that it does not have.

    Where these are None, checkpoints from before they existed fit.
    """
    found = serialization.to_state_dict(tree)
    if not isinstance(found, dict):
        return found
    return {key: value for key, value in found.items() if key not in _LATER or value is not None}


def _digest(tree: PyTree, round_index: int | None = None) -> np.ndarray:
    """(32,) uint8 SHA-256 of names, types, shapes and values, and of the round."""
    found = hashlib.sha256(str(round_index).encode())
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return np.frombuffer(found.digest(), np.uint8)


def _restored(example: PyTree, folder: pathlib.Path, round_index: int | None = None) -> PyTree:
    ocp = _orbax()
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, _state_dict(example))
    like = {"tree": like, _CHECK: jax.ShapeDtypeStruct((32,), np.uint8)}
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            found = checkpointer.restore(folder, like)
    except Exception as error:  # Orbax and TensorStore raise many types for damaged files
        raise DamagedError(
            f"{folder} is not a checkpoint of these settings (model, clients and identities must "
            f"be the same as when it was saved), or is damaged: {_first_line(error)}"
        ) from error
    if not np.array_equal(_digest(found["tree"], round_index), found[_CHECK]):
        raise DamagedError(f"{folder} is damaged: its content does not match its checksum")
    later = {
        key: None
        for key in _LATER
        if isinstance(found["tree"], dict) and hasattr(example, key) and key not in found["tree"]
    }
    return serialization.from_state_dict(example, found["tree"] | later if later else found["tree"])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
