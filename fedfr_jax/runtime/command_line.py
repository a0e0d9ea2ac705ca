"""Code shared by the commands.

What starts JAX is imported where it is used, so that ``--help`` answers at once.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import re
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence

from absl import app, flags

from fedfr_jax.errors import ConfigError, InputError


def with_config_files(argv: Sequence[str]) -> list[str]:
    """Command-line arguments with ``--config=quickstart`` turned into that file's path.

    Raises:
      InputError: there is no such file.
    """

    def found(argument: str, before: str) -> str:
        flag, equals, value = argument.partition("=")
        if before in _CONFIG_FLAGS:  # "--config quickstart"
            flag, equals, value = "", "", argument
        elif flag not in _CONFIG_FLAGS or not value:
            return argument
        from fedfr_jax.config import config_path

        name, colon, rest = value.partition(":")
        return f"{flag}{equals}{config_path(name)}{colon}{rest}"

    return [found(argument, before) for before, argument in zip(["", *argv], argv, strict=False)]


COMPILING = "compile the round"  # name of the thread that compiles ahead
_CONFIG_FLAGS = ("--config", "-config")
# What the configuration of a grid has beside the settings of a run, in ``base``.
OF_A_GRID = ("seeds", "vary", "reference", "tune.seeds")


def check_setting_flags(argv: Sequence[str], grid: bool = False) -> None:
    """Looks up every ``--config.a.b=x``, before files are read.

    Args:
      argv: the command line.
      grid: as for :func:`run_command`.

    Raises:
      ConfigError: there is no such setting; the message suggests the nearest or the new name.
    """
    from fedfr_jax.config import default_config, setting_names, unknown

    names = setting_names(default_config())
    known = [*(f"base.{name}" for name in names), *OF_A_GRID] if grid else list(names)
    for argument in argv:
        found = re.match(r"--?config\.([^=\[]+)", argument)
        if found and found[1] not in known:
            raise ConfigError(unknown(found[1], known))


def run_command(command: Callable[[], None], *, grid: bool = False) -> None:
    """Runs a command whose flags are defined; it reads them from ``flags.FLAGS``.

    Args:
      grid: its configuration is that of a grid, with the settings of a run in ``base``.
    """

    def main(argv):
        from absl import logging

        from fedfr_jax.runtime import interrupts
        from fedfr_jax.runtime.endings import reports_input_errors

        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument {argv[1]!r}; settings are flags")
        interrupts.install()
        try:
            with reports_input_errors(getattr(flags.FLAGS, "workdir", None)):
                logging.set_verbosity(logging.WARNING)  # Orbax logs every file at INFO
                command()
        except SystemExit as end:
            end_at_once_if_compiling(end.code)
            raise

    arguments = sys.argv
    if {"--help", "-help", "-h", "-?"} & set(arguments[1:]):
        print(_help(command))
        return
    if any(re.match(r"--?config", argument) for argument in arguments[1:]):
        from fedfr_jax.runtime.endings import reports_input_errors

        with reports_input_errors():
            check_setting_flags(arguments[1:], grid)
            arguments = with_config_files(arguments)
    app.run(main, argv=arguments)


def end_at_once_if_compiling(code: str | int | None) -> None:
    """Ends the program after an error if a thread still compiles: a normal exit would wait."""
    if any(thread.name == COMPILING for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _help(command: Callable[[], None]) -> str:
    """What the command's module says about it, and this project's flags.

    The help of absl shows the flags of the module that was started: none for a console script.
    """
    lines = [(sys.modules[command.__module__].__doc__ or "").strip(), "", "flags:"]
    found = {
        flag.name: flag
        for module, those in flags.FLAGS.flags_by_module_dict().items()
        if module == sys.argv[0] or module.startswith("fedfr_jax")
        for flag in those
    }
    for name, flag in sorted(found.items()):
        default = flag.default_as_str
        shown = "" if default in (None, "''", "'false'", "'None'") else f" (default: {default})"
        text = f"--{name}  {' '.join((flag.help or '').split())}{shown}"
        lines += textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)


def run_parsed(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], None] | str,
    arguments: Sequence[str] | None = None,
) -> None:
    """Runs a command that takes plain arguments and no configuration.

    Args:
      parser: its arguments.
      command: takes the parsed ones; or the name of a module whose ``main`` does. It is imported
        after parsing, so that ``--help`` does not wait for what it needs.
      arguments: those of the process by default.
    """
    given = parser.parse_args(arguments)
    from absl import logging

    from fedfr_jax.runtime import interrupts
    from fedfr_jax.runtime.endings import reports_input_errors

    interrupts.install()
    with reports_input_errors():
        logging.set_verbosity(logging.WARNING)
        run = importlib.import_module(command).main if isinstance(command, str) else command
        run(given)


def define_distributed_flags() -> None:
    """Flags of a run over several processes (hosts); one process needs none of them."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "Join the processes given by the cluster's environment (TPU pod, SLURM, Open MPI, "
        "Kubernetes).",
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0, if the environment does "
        "not give it; with --processes and --process.",
    )
    flags.DEFINE_integer("processes", None, "Number of processes.")
    flags.DEFINE_integer("process", None, "Which one this is, from 0.")


def join_processes() -> None:
    """Connects the processes of one run, as the flags say; must come before JAX is used.

    Raises:
      InputError: the flags contradict each other.
    """
    import jax

    given = (flags.FLAGS.coordinator, flags.FLAGS.processes, flags.FLAGS.process)
    if any(x is not None for x in given):
        if any(x is None for x in given):
            raise InputError("--coordinator, --processes and --process go together; give all three")
        jax.distributed.initialize(*given)
    elif flags.FLAGS.distributed:
        jax.distributed.initialize()


def folder_of_process(workdir: str | pathlib.Path) -> pathlib.Path:
    """The folder for this process' own files: for process 0, the work directory."""
    import jax

    folder = pathlib.Path(workdir)
    return folder / "processes" / str(jax.process_index()) if jax.process_index() else folder
