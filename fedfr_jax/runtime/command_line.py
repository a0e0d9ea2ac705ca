"""What the commands share."""
from __future__ import annotations

import contextlib
import pathlib
import sys

import jax
from absl import flags

from fedfr_jax.errors import InputError


def define_distributed_flags() -> None:
    """Flags of a run over several processes (hosts); one process needs none of them."""
    flags.DEFINE_bool("distributed", False, "Join the processes that the cluster's environment "
                      "(TPU pod, SLURM, Open MPI) tells of.")
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where the environment does "
                        "not tell; with --processes and --process.")
    flags.DEFINE_integer("processes", None, "Number of processes.")
    flags.DEFINE_integer("process", None, "Which one this is, from 0.")


def join_processes() -> None:
    """Connects the processes of one run, as the flags say; must come before JAX is used.

    Raises:
      InputError: the flags contradict each other.
    """
    given = (flags.FLAGS.coordinator, flags.FLAGS.processes, flags.FLAGS.process)
    if any(x is not None for x in given):
        if any(x is None for x in given):
            raise InputError("--coordinator, --processes and --process go together; give all three")
        jax.distributed.initialize(*given)
    elif flags.FLAGS.distributed:
        jax.distributed.initialize()


def folder_of_process(workdir: str | pathlib.Path) -> pathlib.Path:
    """Where this process writes its own files: the work directory for process 0."""
    folder = pathlib.Path(workdir)
    return folder / "processes" / str(jax.process_index()) if jax.process_index() else folder


@contextlib.contextmanager
def reports_input_errors():
    """Ends the program with one readable line where input is bad or training diverged.

    Other errors pass: they are the program's own, and a traceback helps.
    """
    try:
        yield
    except (InputError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
