"""One run through its rounds: what the host does with the state between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from fedfr_jax import engine
from fedfr_jax.algorithm.local_state import LOSS_TERMS
from fedfr_jax.algorithm.state import Heads, ServerState
from fedfr_jax.population.cohort_data import CohortData
from fedfr_jax.population.store import RowStore
from fedfr_jax.runtime import costs, message_rows, simulated_time, workdir
from fedfr_jax.runtime.checkpoints import RoundCheckpoints
from fedfr_jax.runtime.client_states import ClientStates
from fedfr_jax.runtime.parts import PartPrograms, round_in_parts
from fedfr_jax.runtime.processes import worst
from fedfr_jax.runtime.programs import Programs
from fedfr_jax.runtime.remarks import remark
from fedfr_jax.runtime.simulation import Simulation

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Run:
    """The input and the state of the rounds of one run.

    Attributes:
      sim: the simulation.
      writer, checkpoints: of its work directory.
      store: the heads of this process' clients after ``server.round`` rounds.
      server: the state, on the devices; its memory is donated.
      pretrained: variables before the first round, on the host.
      evaluate: ``(rounds done, backbone, personal models)``, called every ``eval.every``
        rounds; None: there is no evaluation between rounds.
    """

    sim: Simulation
    writer: workdir.RunWriter
    checkpoints: RoundCheckpoints
    store: RowStore
    server: ServerState
    pretrained: PyTree
    evaluate: Callable[..., None] | None = None


@dataclasses.dataclass(frozen=True)
class RoundInputs:
    """The clients of a round and their data: read ahead while the previous round runs.

    Attributes:
      assigned: (C,) client in each slot of all devices; ``mine``: of this process' devices.
      cohort: their data, on the devices; None if there are no clients.
    """

    assigned: np.ndarray
    mine: np.ndarray
    cohort: CohortData | None


def round_row(
    sim: Simulation,
    round_index: int,
    clients: np.ndarray,
    metrics: dict[str, np.ndarray],
    seconds: float,
) -> dict[str, Any]:
    """One record of ``metrics.jsonl``: means over clients, and the hard negatives' range.

    Args:
      sim: its settings and the number of its public images are used.
      clients: (C,) numbers of the clients, -1 for an empty slot; metrics: (C,) arrays.
    """
    config, public = sim.config, len(sim.split.public_images)
    present = clients >= 0
    clients, metrics = clients[present], {k: v[present] for k, v in metrics.items()}
    about = message_rows.about_messages(sim, round_index, clients, metrics)
    good = message_rows.trained_well(metrics)
    metrics = {k: v[good] for k, v in metrics.items()}
    row: dict[str, Any] = {
        "kind": "round",
        "round": round_index,
        "clients": len(clients),
        "public_images": public,
        "seconds": seconds,
        **about,
    }
    if not len(clients) or not good.any():
        return row | {"images": 0, "images_per_second": 0.0}
    hard = metrics["hard_negatives"]
    threshold = (
        {"hard_threshold": config.fed.hard_threshold} if (config.fed.public_data == "hard") else {}
    )
    trained = round(costs.trained_images(config, metrics).sum())
    return row | {
        **{k: float(np.mean(metrics[k])) for k in LOSS_TERMS},
        "hard_negatives_mean": float(hard.mean()),
        "hard_negatives_min": int(hard.min()),
        "hard_negatives_max": int(hard.max()),
        **threshold,
        "images": trained,
        "images_per_second": trained / seconds,
        "flops_per_client": float(costs.local_flops(config, sim.spec, metrics, public).mean()),
    }


def refuse_non_finite(
    round_index: int,
    clients: np.ndarray,
    loss: np.ndarray,
    server_is_finite: np.ndarray,
    slots_are_finite: np.ndarray,
    quarantined: np.ndarray | None = None,
) -> None:
    """Raises an error if a loss, a client's state or the averaged model is not finite.

    Args:
      clients: (C,) numbers of the clients, -1 for an empty slot; loss: (C,) of each.
      server_is_finite, slots_are_finite: from :func:`fedfr_jax.runtime.programs.compile_finite`.
      quarantined: (C,) bool, clients that are left out of the average: their loss may be
        anything, but not all clients of a round may be such.

    Raises:
      FloatingPointError: one of them is not finite.
    """
    advice = (
        "Lower fed.lr, or another rate or decay of the optimizers, and continue with --resume: "
        "the last checkpoint is from before this round. fed.on_bad_update='quarantine' leaves such "
        "clients out"
    )
    left_out = np.zeros(len(clients), bool) if quarantined is None else quarantined
    if left_out.any() and left_out[clients >= 0].all():
        raise FloatingPointError(
            f"round {round_index}: the difference of every client is quarantined (not finite, or "
            f"longer than fed.quarantine_norm). {advice}"
        )
    for what, good in (("loss", np.isfinite(loss) | left_out), ("state", slots_are_finite)):
        bad = clients[(clients >= 0) & ~good]
        if len(bad):
            raise FloatingPointError(
                f"round {round_index}: the {what} of client {bad[0]} is not "
                f"finite ({len(bad)} such clients). {advice}"
            )
    if not server_is_finite:
        raise FloatingPointError(f"round {round_index}: the server's model is not finite. {advice}")


class Course:
    """The state of one run on its way through the rounds.

    Args:
      run: the state at the start.
      programs: the compiled functions of the rounds.
      last: number of rounds after which it ends.

    Attributes:
      server: the state, on the devices.
    """

    def __init__(self, run: Run, programs: Programs, last: int):
        self.server = run.server
        self._run, self._last = run, last
        self._rows: list[dict[str, Any]] = []
        self._finite, self._round = programs.finite, programs.round
        mesh = run.sim.layout.mesh
        self._clients = ClientStates(
            run.sim,
            run.store,
            int(run.server.round),
            programs.start,
            engine.replicate(run.pretrained, mesh),
            jax.random.key(run.sim.config.seed + 1),
        )
        self._unsaved: tuple[int, ServerState] | None = None
        self._saved: int | None = None  # the round of the last checkpoint
        self._remarked = self._warned = False
        self._seconds = 0.0  # simulated
        if run.sim.config.simulated_time.is_active and int(run.server.round):
            rows = workdir.read_metrics(run.writer.workdir)
            self._seconds = simulated_time.elapsed(rows, int(run.server.round))

    def hand_out(self, inputs: RoundInputs) -> Heads:
        """The heads of a round, on the devices."""
        return self._clients.hand_out(inputs.mine, inputs.cohort)

    def read_ahead(self, inputs: RoundInputs, following: RoundInputs | None) -> None:
        """Reads the next round's heads, unless they are on the devices already."""
        if following is not None and following is not inputs and following.cohort is not None:
            self._clients.read_ahead(following.mine)

    def finite(self, server: ServerState, heads: Heads) -> tuple[jax.Array, jax.Array]:
        """Whether a round's results are finite; see ``programs.compile_finite``."""
        return self._finite(server, heads)

    def in_parts(self, inputs: RoundInputs, key: jax.Array, done: int) -> tuple:
        """A round in parts: (server, None, metrics, finite); the heads are on the host already."""
        assert isinstance(self._round, PartPrograms)
        server, metrics, finite = round_in_parts(
            self._run.sim,
            self._round,
            self._finite,
            self._clients,
            self.server,
            inputs.assigned,
            key,
            done,
        )
        return server, None, metrics, finite

    def _is_due(self, done: int) -> bool:
        every = self._run.sim.config.checkpoint.every
        return done % every == 0 or done == self._last or self.evaluates_at(done)

    def evaluates_at(self, done: int) -> bool:
        """Whether ``eval.every`` asks for an evaluation after ``done`` rounds."""
        return self._run.evaluate is not None and done % self._run.sim.config.evaluate_every == 0

    def keep(
        self,
        done: int,
        server: ServerState,
        heads: Heads | None,
        metrics,
        finite,
        inputs: RoundInputs,
        following: RoundInputs | None,
        seconds: float,
        *,
        stops: bool = False,
    ) -> dict[str, Any]:
        """Takes a round's results; copies to the host what a later round would overwrite.

        Args:
          heads: None where the host has them already.
          stops: the run ends after this round.

        Returns:
          The record for ``metrics.jsonl``.

        Raises:
          FloatingPointError: a result is not finite; the run must not continue.
        """
        fed, bad = self._run.sim.config.fed, metrics.get("quarantined")
        if fed.on_bad_update == "stop" and bad is not None:
            message_rows.refuse_bad(done, inputs.assigned, bad)
            bad = None
        refuse_non_finite(done, inputs.assigned, metrics["loss"], finite[0], finite[1], bad)
        self.server = server
        due = stops or self._is_due(done)
        stays = following is inputs  # the same cohort again, see read_ahead()
        if heads is not None:
            self._clients.take_back(inputs.mine, heads, done, to_host=due or not stays)
        return self._record(done, inputs.assigned, metrics, seconds, due)

    def pass_over(
        self, done: int, inputs: RoundInputs, seconds: float, *, stops: bool = False
    ) -> dict[str, Any]:
        """Notes a round without clients, which changes nothing; returns its record."""
        mesh = self._run.sim.layout.mesh
        self.server = self.server.replace(
            round=engine.replicate(np.asarray(done, self.server.round.dtype), mesh)
        )
        self._clients.pass_over(done)
        return self._record(done, inputs.assigned, {}, seconds, stops or self._is_due(done))

    def _record(self, done, clients, metrics, seconds, due) -> dict[str, Any]:
        row = round_row(self._run.sim, done, clients, metrics, seconds)
        if "round_seconds" in row:
            self._seconds += row["round_seconds"]
            row["simulated_time"] = self._seconds
        if due:
            self._unsaved = (done, jax.device_get(self.server))
        self._run.writer.append(row)
        self._rows.append(row)
        if not self._remarked and (text := remark(row)):
            self._remarked = True  # once is enough: settings do not change during a run
            logging.warning("%s", text)
        if not self._warned and simulated_time.nobody_arrived(row):
            self._warned = True  # the summary counts these rounds
            logging.warning(
                "round %d: nobody of %d clients arrived in time, so that the server keeps its "
                "model; the slowest needed %.3g s. Raise simulated_time.deadline unless this is "
                "what you simulate",
                done,
                row["clients"],
                row["slowest_seconds"],
            )
        return row

    def save(self) -> bool:
        """Writes the heads, then the checkpoint that needs them.

        Returns:
          Whether this was the state after the last finished round.
        """
        self._clients.write()
        if self._unsaved is not None:
            done, server = self._unsaved
            self._clients.commit(done)
            self._run.store.retain(self._run.checkpoints.save(done, server))
            self._unsaved = None
            self._saved = done
        return not self._rows or self._rows[-1]["round"] == self._saved

    def evaluate(self, done: int) -> None:
        """The evaluation after ``done`` rounds."""
        backbone = engine.addressable(self.server.backbone)
        assert self._run.evaluate is not None  # checked by evaluates_at()
        self._run.evaluate(done, backbone, self._clients.models(done, backbone))

    def lacks_pretrained(self) -> bool:
        """Whether ``eval.every`` asks for the pretrained model's evaluation, which is not there."""
        if self._run.evaluate is None:
            return False
        folder = self._run.writer.workdir
        rows = workdir.read_metrics(folder) if (folder / workdir.METRICS).exists() else []
        there = any(row["kind"] == "evaluation" and row.get("round") == 0 for row in rows)
        return bool(worst(int(jax.process_index() == 0 and not there)))  # which has such rows

    def evaluate_pretrained(self) -> None:
        """The evaluation of the pretrained model, which is also that before the first round."""
        assert self._run.evaluate is not None  # checked by lacks_pretrained()
        self._run.evaluate(0, self._run.pretrained, None)

    def finish(self, compiled: dict[str, int]) -> tuple[ServerState, dict[str, Any]]:
        """Saves the last state; returns (server, numbers for the summary)."""
        if not self._last and not self._run.checkpoints.rounds():
            self._unsaved = (0, jax.device_get(self.server))
        self.save()
        warm = self._rows[1:] or self._rows
        seconds = sum(row["seconds"] for row in warm)
        return self.server, {
            "compilations": compiled,
            "clients_per_round": int((self._run.sim.schedule.cohorts >= 0).sum(1).max()),
            "images_per_second": sum(r["images"] for r in warm) / seconds if warm else None,
        }
