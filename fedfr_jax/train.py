"""Trains: pretraining, federated rounds, evaluation, report.

    python -m fedfr_jax.train --config=configs/quickstart.py --workdir=runs/x \\
        --config.fed.num_clients=64
    python -m fedfr_jax.train --config=configs/quickstart.py --workdir=runs/x --resume
    python -m fedfr_jax.train --config=configs/quickstart.py --describe
    python -m fedfr_jax.train --config=configs/quickstart.py --dry_run
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

    if flags.FLAGS.dry_run:
        _dry_run()
        return
    config = resolve(flags.FLAGS.config)
    if flags.FLAGS.describe:
        render(describe(config))
        return
    if flags.FLAGS.workdir is None:
        raise InputError("--workdir is missing: the folder where everything is written")
    use_cpu_devices(config.engine.cpu_devices)
    join_processes()
    train(config, flags.FLAGS.workdir, resume=flags.FLAGS.resume)


def _dry_run() -> None:
    """Prints what a run would take; trains nothing and reads no images."""
    from fedfr_jax.config import resolve
    from fedfr_jax.engine.devices import use_cpu_devices
    from fedfr_jax.reporting.dry_run import plan_tables
    from fedfr_jax.reporting.result_table import render
    from fedfr_jax.runtime.forecast import forecast
    from fedfr_jax.runtime.machine import find_machine
    from fedfr_jax.runtime.stand_in import stand_in_source

    given = flags.FLAGS
    if given.stand_in and not given.config.data.root:
        given.config.data.root = "not there"
    config = resolve(given.config)
    use_cpu_devices(config.engine.cpu_devices)
    machine = find_machine(
        config,
        device_gib=given.device_gib,
        host_gib=given.host_gib,
        devices=given.devices,
        hosts=given.hosts,
        platform=given.device_platform,
    )
    source = stand_in_source(config) if given.stand_in else None
    render(plan_tables(forecast(config, machine, source=source, tflops=given.device_tflops)))


def _define_dry_run_flags() -> None:
    flags.DEFINE_bool("dry_run", False, "Show what a run would take, and whether it fits.")
    flags.DEFINE_bool("stand_in", False, "With --dry_run: the data set is not there; make labels.")
    flags.DEFINE_float("device_gib", None, "With --dry_run: memory of each accelerator, in GiB.")
    flags.DEFINE_enum("device_platform", "gpu", ["gpu", "tpu"], "With --device_gib: its kind.")
    flags.DEFINE_float("host_gib", None, "With --dry_run: memory of each host, in GiB.")
    flags.DEFINE_integer("devices", None, "With --dry_run: accelerators of all hosts together.")
    flags.DEFINE_integer("hosts", 1, "With --dry_run: number of hosts.")
    flags.DEFINE_float(
        "device_tflops", None, "With --dry_run: speed of each device to be assumed, in TFLOP/s."
    )


def command() -> None:
    """The command ``fedfr-train``."""
    config_flags.DEFINE_config_file(
        "config", None, "Settings, such as configs/quickstart.py; --config.a.b=x changes one."
    )
    flags.DEFINE_string("workdir", None, "Where everything is written.")
    flags.DEFINE_bool("describe", False, "Show who would have which data; train nothing.")
    flags.DEFINE_bool("resume", False, "Continue from the newest checkpoint in the work directory.")
    _define_dry_run_flags()
    flags.mark_flag_as_required("config")
    define_distributed_flags()
    run_command(main)


if __name__ == "__main__":
    command()
