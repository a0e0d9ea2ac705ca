"""One simulation to work with: build it from settings, run rounds, look inside, evaluate.

    from fedfr_jax.experiment import Experiment, run

    result = run("fedavg", base, fed={"rounds": 4})      # a whole run in one call
    with Experiment(base) as experiment:                 # or step by step
        experiment.run(rounds=2)
        experiment.head(3)["class_embeddings"]

A thin shell: the state is plain pytrees, and all work is done by the pure functions of
:mod:`fedfr_jax.algorithm.round` and the functions of :mod:`fedfr_jax.runtime.rounds`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fedfr_jax import engine
from fedfr_jax.algorithm.state import ServerState
from fedfr_jax.config import Config, Settings, merged, settings_of
from fedfr_jax.data.types import ImageSource, as_images
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.examples import identity_sheet
from fedfr_jax.reporting import results
from fedfr_jax.reporting.result import Result
from fedfr_jax.runtime import resuming, workdir
from fedfr_jax.runtime.activations import lower_part, trained_variables, with_activations
from fedfr_jax.runtime.autotune import keep_settled
from fedfr_jax.runtime.checkpoints import RoundCheckpoints, saved_rounds
from fedfr_jax.runtime.client_states import check_own, check_whole, head_of, open_store, own_models
from fedfr_jax.runtime.command_line import folder_of_process
from fedfr_jax.runtime.embedding import make_embed, make_personal_embed
from fedfr_jax.runtime.lock import WorkdirLock
from fedfr_jax.runtime.pretrained import copy_pretrained, pretrained_key
from fedfr_jax.runtime.programs import Programs, compile_ahead, compile_programs
from fedfr_jax.runtime.rounds import (
    Run,
    go_together,
    pretrained_model,
    run_rounds,
    starting_server,
    starting_weights,
)
from fedfr_jax.runtime.simulation import Simulation, build_simulation

PyTree = Any
_PRETRAINED: dict[str, pathlib.Path] = {}  # pretrained backbones of this process' runs, by key


class Experiment:
    """A run in progress. A context manager; leaving it closes its files.

    Args:
      config: settings, of any kind that :func:`settings_of` takes.
      folder: the work directory; None: a temporary one, deleted with the experiment.
      resume: continue the run that is there.
      source: the image source of ``config.data``, if it is already open.
      compile_ahead: compile the round while data are read; for when all rounds follow at once.
      method, changes: as for :func:`settings_of`.

    Attributes:
      config: the settings, with all automatic ones decided.
      sim: data, split, model, layout; see :class:`fedfr_jax.runtime.simulation.Simulation`.
      folder: the work directory.
      pretrained: variables of the backbone (of its trained part) before the first round, on the
        host.
      server: the server's state, on the devices. Rounds donate its memory: use
        ``jax.device_get(experiment.server)`` to keep a copy.

    Raises:
      InputError: bad settings or data, before any long work.
    """

    def __init__(
        self,
        config: Settings | None = None,
        folder: str | pathlib.Path | None = None,
        *,
        method: str | Mapping[str, Any] | None = None,
        resume: bool = False,
        source: ImageSource | None = None,
        compile_ahead: bool = False,
        **changes: Any,
    ):
        config = settings_of(config, method, **changes)
        engine.use_cpu_devices(config.engine.cpu_devices)
        self._files = contextlib.ExitStack()
        if folder is None:
            folder = self._files.enter_context(tempfile.TemporaryDirectory(prefix="fedfr_"))
        self.folder = pathlib.Path(folder).expanduser()
        if resume and (self.folder / workdir.CONFIG).exists():
            config = keep_settled(config, workdir.read_config(self.folder))
        self._seconds: dict[str, float] = {}
        self._figures: dict[str, Any] = {}
        try:
            self._start(config, resume, source, compile_ahead)
        except BaseException:
            self.close()
            raise

    def _start(self, config: Config, resume: bool, source: ImageSource | None, ahead: bool) -> None:
        self._programs: Programs | None = None
        with self._timed("data"):
            follow = config.rounds > max(saved_rounds(self.folder), default=0)
            planned = self._compile_ahead if ahead and follow else None
            self.sim = build_simulation(config, source, planned)
            if self._programs and jax.default_backend() == "gpu":
                self._programs.wait()  # XLA times kernels, which pretraining would disturb
            self.config = self.sim.config
            start = starting_weights(self.sim)
            own = workdir.make_folder(folder_of_process(self.folder))
            self._files.enter_context(WorkdirLock(own))
            self._writer = self._files.enter_context(
                resuming.begin(self.sim, self.folder, own, resume)
            )
            self._checkpoints = self._files.enter_context(
                RoundCheckpoints(self.folder, keep=self.config.checkpoint.keep)
            )
            self._store = self._files.enter_context(open_store(self.sim, self.folder))
        with self._timed("pretraining"):
            pretrained, embeddings = pretrained_model(
                self.sim,
                self._writer,
                self.folder / "pretrained",
                start,
                resume,
                needed=bool(self._checkpoints.rounds()),
            )
            resuming.check_pretrained(
                own, record=True, pretrained=pretrained, classifier=embeddings
            )
        self.sim = with_activations(self.sim, pretrained, own)
        pretrained = trained_variables(self.sim, pretrained)
        saved = resuming.newest_state(self.sim, self._checkpoints, self._store)
        self.server: ServerState = starting_server(self.sim, pretrained, embeddings, saved)
        if self.round > self.config.rounds:
            raise InputError(
                f"{self.folder} has done {self.round} rounds, more than fed.rounds="
                f"{self.config.fed.rounds}; raise it, or choose another work directory"
            )
        resuming.drop_later_rows(self._writer, self.round)
        self.pretrained: PyTree = jax.device_get(pretrained)
        self._programs = self._programs or compile_programs(self.sim)
        self._evaluate_round = (
            results.make_round_evaluation(self._writer, lambda: self._assessor, self.pretrained)
            if self.config.evaluate_every
            else None
        )

    def _compile_ahead(self, planned: Simulation) -> None:
        self._programs = compile_ahead(planned)

    @contextlib.contextmanager
    def _timed(self, phase: str):
        started = time.monotonic()
        yield
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.monotonic() - started

    def __enter__(self) -> Experiment:
        return self

    def __exit__(self, *unused) -> None:
        self.close()

    def close(self) -> None:
        """Closes files, and removes the work directory if it was a temporary one."""
        self._files.close()

    @functools.cached_property
    def _assessor(self):
        """Made for the first evaluation, as test images are read for it."""
        return results.make_assessor(self.sim)

    @property
    def round(self) -> int:
        """Rounds done."""
        return int(self.server.round)

    def run(self, rounds: int | None = None) -> list[dict[str, Any]]:
        """Runs some rounds, at most up to ``config.rounds``.

        Args:
          rounds: how many; None: all that are left.

        Returns:
          Their records in :attr:`history`.

        Raises:
          FloatingPointError: training diverged.
        """
        before, last = self.round, self.config.rounds
        until = last if rounds is None else min(before + rounds, last)
        with self._timed("rounds"):
            [(self.server, self._figures)] = run_rounds(
                [self.state()], until=until, programs=self._programs
            )
        return [row for row in self.history if row["kind"] == "round" and row["round"] > before]

    def state(self) -> Run:
        """What :func:`fedfr_jax.runtime.rounds.run_rounds` works on."""
        return Run(
            self.sim,
            self._writer,
            self._checkpoints,
            self._store,
            self.server,
            self.pretrained,
            self._evaluate_round,
        )

    def _take(self, server: ServerState, figures: dict[str, Any], seconds: float) -> None:
        self.server, self._figures = server, figures
        self._seconds["rounds"] = self._seconds.get("rounds", 0.0) + seconds

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records of ``metrics.jsonl``: pretraining, rounds, evaluations."""
        path = self._writer.workdir / workdir.METRICS
        return workdir.read_metrics(self._writer.workdir) if path.exists() else []

    def head(self, client: int) -> dict[str, Any]:
        """A client's private state, as arrays; see :class:`fedfr_jax.algorithm.state.Heads`.

        Raises:
          KeyError: the client has not taken part yet.
          InputError: another process has it.
        """
        check_own(client)
        return head_of(self._store, client)

    def embed(self, images: np.ndarray, client: int | None = None) -> np.ndarray:
        """(N, d) features of (N, S, S, 3) uint8 images: of the global or a client's own model.

        Raises:
          InputError: the images have the wrong type or size, or there is no such client.
        """
        return self.model(client)(images)

    def model(self, client: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
        """:meth:`embed` as a function of images, with the present state even after later rounds.

        Raises:
          InputError: there is no such client.
        """
        frozen = self._frozen(client)
        return lambda images: frozen(as_images(images, self.config.data.image_size))

    @functools.cached_property
    def _programs_of_models(self):
        """Compiled once for any number of models."""
        return lower_part(self.sim), make_embed(self.sim), make_personal_embed(self.sim)

    def _frozen(self, client: int | None):
        clients = len(self.sim.split.clients)
        lower, embed, personal_embed = self._programs_of_models
        if client is None:
            backbone = jax.device_get(self.server.backbone)
            return lambda images: embed(backbone, lower(images))
        if not (isinstance(client, (int, np.integer)) and 0 <= client < clients):
            raise InputError(f"client {client!r}: there are the clients 0 to {clients - 1}")
        personal = jax.device_get(self._personal()(client))
        return lambda images: personal_embed(personal, lower(images))

    def _personal(self):
        check_whole(self._store, self.round)
        return own_models(self.sim, self._store, self.server.backbone)

    def _run(self) -> dict[str, Any]:
        run = results.describe_run(self.config, self.folder.resolve().name, self.round)
        notes = results.notes(self.history, self.sim, self.round)
        return run | self._figures | {"seconds": dict(self._seconds)} | notes

    def evaluate(self, *, show: bool = False) -> dict[str, Any]:
        """All protocols on the present state; writes summary, curves and report.

        All processes of a run call this together, each evaluates its own clients.

        Args:
          show: print the tables.

        Returns:
          What ``summary.json`` holds.
        """
        with self._timed("evaluation"):
            backbone = engine.addressable(self.server.backbone)
            models = self.pretrained, backbone, self._personal()
            return results.write_results(
                self.sim, self._writer, self._run(), self._assessor, *models, show=show
            )

    def faces(self, rows: int = 6, columns: int = 10) -> np.ndarray | None:
        """One image of public identities, one per row: (height, width, 3) uint8."""
        sheet = identity_sheet(results.public_photographs(self.sim), rows, columns)
        return None if sheet is None else np.concatenate(np.concatenate(sheet, axis=1), axis=1)


def run_side_by_side(experiments: Sequence[Experiment]) -> None:
    """Runs all remaining rounds of experiments that differ only in ``seed``.

    They run in one program, vmapped over the seeds; useful if one seed's clients do not fill the
    device. The results equal those of separate runs, up to float reassociation.

    Raises:
      ValueError: they differ in more than the seed.
      FloatingPointError: training diverged.
    """
    runs = [experiment.state() for experiment in experiments]
    if not go_together(runs):
        raise ValueError(
            "these experiments differ in more than seed, or in how far they are; "
            "run them one after the other"
        )
    started = time.monotonic()
    finished = run_rounds(runs)
    seconds = (time.monotonic() - started) / len(runs)
    for experiment, (server, figures) in zip(experiments, finished, strict=True):
        experiment._take(server, figures | {"side_by_side": len(runs)}, seconds)


def run(
    name: str | None = None,
    /,
    config: Settings | None = None,
    folder: str | pathlib.Path | None = None,
    **changes: Any,
) -> Result:
    """A whole run in one call: pretraining, rounds, evaluation.

    Runs in the same process with the same pretraining do it only once.

    Args:
      name: a method, a key of :data:`fedfr_jax.methods.METHODS`; None: what ``config`` says.
      config: settings to start from; None: the defaults.
      folder: the work directory; if it holds this run, the run is continued. None: a new folder
        among the system's temporary files.
      **changes: as for :func:`settings_of`.
    """
    folder = pathlib.Path(folder or tempfile.mkdtemp(prefix="fedfr_")).expanduser()
    if name is not None:
        changes["method"] = {**changes.get("method", {}), "name": name}
    settings = settings_of(config, **changes)
    key, own = pretrained_key(settings), folder / "pretrained"
    if key in _PRETRAINED and copy_pretrained(_PRETRAINED[key], own):
        print(f"begins with the pretrained backbone of {_PRETRAINED[key].parent}")
    with Experiment(settings, folder, resume=True, compile_ahead=True) as experiment:
        _PRETRAINED[key] = own
        experiment.run()
        experiment.evaluate()
    return Result(folder)


def open_run(folder: str | os.PathLike, **changes: Any) -> Experiment:
    """Reopens a run from its work directory, to inspect it or to continue it.

    Args:
      folder: the work directory.
      **changes: settings that may differ, such as ``fed={"rounds": 30}``.

    Raises:
      InputError: there is no run, or its data can no longer be read.
    """
    folder = pathlib.Path(folder).expanduser()
    return Experiment(merged(workdir.read_config(folder), changes), folder, resume=True)


def train(
    config: Config,
    folder: str | pathlib.Path,
    *,
    resume: bool = False,
    source: ImageSource | None = None,
) -> dict[str, Any]:
    """A whole run: pretraining, rounds, evaluation, report.

    Args:
      config: from :func:`fedfr_jax.config.resolve`.
      folder: the work directory.
      resume: continue from the newest checkpoint in it.
      source: the image source of ``config.data``, if it is already open.

    Returns:
      What ``summary.json`` holds.

    Raises:
      InputError: bad settings or data, before any long work.
      FloatingPointError: training diverged.
    """
    with Experiment(config, folder, resume=resume, source=source, compile_ahead=True) as experiment:
        experiment.run()
        return experiment.evaluate(show=True)
