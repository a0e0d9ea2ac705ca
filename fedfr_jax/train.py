"""Trains: pretraining, federated rounds, evaluation, report.

    python -m fedfr_jax.train --config=configs/quickstart.py --workdir=runs/x \\
        --config.fed.num_clients=64
    python -m fedfr_jax.train --config=configs/quickstart.py --workdir=runs/x --resume
"""
from __future__ import annotations

import pathlib
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from fedfr_jax.config import Config, ConfigError, resolve
from fedfr_jax.data.types import ImageSource
from fedfr_jax.experiment import Experiment
from fedfr_jax.runtime.command_line import (
    define_distributed_flags,
    join_processes,
    reports_input_errors,
    run_command,
)
from fedfr_jax.runtime.simulation import use_cpu_devices


def train(config: Config, folder: str | pathlib.Path, *, resume: bool = False,
          source: ImageSource | None = None) -> dict[str, Any]:
    """A whole run: pretraining, rounds, evaluation, report.

    Args:
      config: from :func:`fedfr_jax.config.resolve`.
      folder: the work directory.
      resume: go on from the newest checkpoint in it.
      source: what ``config.data`` opens, where it is open already.

    Returns:
      What ``summary.json`` holds.

    Raises:
      InputError: bad settings or data, before any long work.
      FloatingPointError: training diverged.
    """
    if config.eval.every and jax.process_count() > 1:
        raise ConfigError(f"eval.every is {config.eval.every}, but with several processes there "
                          "is no evaluation between rounds; set it to 0")
    with Experiment(config, folder, resume=resume, source=source) as experiment:
        experiment.run()
        if jax.process_count() == 1:
            return experiment.evaluate(show=True)
        # A process has its own clients' heads only.
        print(f"trained; evaluate with: python -m fedfr_jax.evaluate --workdir={folder}")
        return experiment.write_run()


def main(argv):
    """Trains and evaluates what the flags ask for."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; settings are flags")
    with reports_input_errors():
        logging.set_verbosity(logging.WARNING)  # Orbax tells of every file at INFO
        config = resolve(flags.FLAGS.config)
        use_cpu_devices(config.engine.cpu_devices)
        join_processes()
        train(config, flags.FLAGS.workdir, resume=flags.FLAGS.resume)


def command() -> None:
    """The command ``fedfr-train``."""
    config_flags.DEFINE_config_file(
        "config", None, "Settings, such as configs/quickstart.py; --config.a.b=x changes one.")
    flags.DEFINE_string("workdir", None, "Where everything is written.", required=True)
    flags.DEFINE_bool("resume", False, "Go on from the newest checkpoint in the work directory.")
    flags.mark_flag_as_required("config")
    define_distributed_flags()
    run_command(main)


if __name__ == "__main__":
    command()
