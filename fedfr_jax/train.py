"""Trains: pretraining, federated rounds, evaluation, report.

    python -m fedfr_jax.train --config=configs/quickstart.py --workdir=runs/x \\
        --config.fed.num_clients=64
    python -m fedfr_jax.train --config=configs/quickstart.py --workdir=runs/x --resume
    python -m fedfr_jax.train --config=configs/quickstart.py --describe
"""

from __future__ import annotations

# ruff: noqa: PLC0415 (--help does not wait for JAX)
from absl import flags
from ml_collections import config_flags

from fedfr_jax.errors import InputError
from fedfr_jax.runtime.command_line import define_distributed_flags, join_processes, run_command


def main() -> None:
    """Trains and evaluates what the flags ask for."""
    from fedfr_jax.config import resolve
    from fedfr_jax.engine import use_cpu_devices
    from fedfr_jax.experiment import train
    from fedfr_jax.reporting.description import describe
    from fedfr_jax.reporting.result_table import render

    config = resolve(flags.FLAGS.config)
    if flags.FLAGS.describe:
        render(describe(config))
        return
    if flags.FLAGS.workdir is None:
        raise InputError("--workdir is missing: the folder where everything is written")
    use_cpu_devices(config.engine.cpu_devices)
    join_processes()
    train(config, flags.FLAGS.workdir, resume=flags.FLAGS.resume)


def command() -> None:
    """The command ``fedfr-train``."""
    config_flags.DEFINE_config_file(
        "config", None, "Settings, such as configs/quickstart.py; --config.a.b=x changes one."
    )
    flags.DEFINE_string("workdir", None, "Where everything is written.")
    flags.DEFINE_bool("describe", False, "Show who would have which data; train nothing.")
    flags.DEFINE_bool("resume", False, "Continue from the newest checkpoint in the work directory.")
    flags.mark_flag_as_required("config")
    define_distributed_flags()
    run_command(main)


if __name__ == "__main__":
    command()
