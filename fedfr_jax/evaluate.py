"""Evaluates a run and writes its summary and report.

    python -m fedfr_jax.evaluate --workdir=runs/x

reads the settings and the newest checkpoint of the work directory. ``train`` ends
with the same evaluation.
"""
from __future__ import annotations

from typing import Any

from absl import app, flags, logging

from fedfr_jax.experiment import evaluate
from fedfr_jax.runtime.command_line import reports_input_errors, run_command

PyTree = Any


def main(argv):
    """Evaluates the run in the work directory of the flags again."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; settings are flags")
    with reports_input_errors():
        logging.set_verbosity(logging.WARNING)  # Orbax tells of every file at INFO
        evaluate(flags.FLAGS.workdir)


def command() -> None:
    """The command ``fedfr-evaluate``."""
    flags.DEFINE_string("workdir", None, "Work directory of the run to evaluate.", required=True)
    run_command(main)


if __name__ == "__main__":
    command()
