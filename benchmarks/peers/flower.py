"""Flower: its own strategy and message passing, clients in Ray's actors with a core each.

Every round's users are assigned to as many nodes as take part. A population of 1,000 nodes would
only cost Flower time.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import time

import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.peers import child
from benchmarks.peers.torch_network import network, train

client = ClientApp()


@functools.cache
def _in_actor() -> child.Job:
    """The job, read once per actor; actors inherit the path."""
    torch.set_num_threads(1)
    return child.read_job(os.environ["PEER_JOB"])[0]


@client.train()
def train_user(message: Message, context: Context) -> Message:
    job = _in_actor()
    model = network(job)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images = train(job, model, message.content["config"]["user"])
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    metrics = MetricRecord({"num-examples": images if job.work.weighted else 1})
    found = RecordDict({"arrays": ArrayRecord(state), "metrics": metrics})
    return Message(content=found, reply_to=message)


class Cohorts(FedAvg):
    """FedAvg with the cohorts of the problem; it notes the end of every round."""

    def __init__(self, job: child.Job):
        super().__init__(fraction_evaluate=0.0)
        self._job = job

    def configure_train(self, server_round, arrays, config, grid):
        users = self._job.problem["cohorts"][server_round - 1]
        while len(nodes := sorted(grid.get_node_ids())) < len(users):
            time.sleep(0.01)
        for node, user in zip(nodes, users, strict=False):
            content = RecordDict({"arrays": arrays, "config": ConfigRecord({"user": int(user)})})
            yield Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node)

    def aggregate_train(self, server_round, replies):
        found = super().aggregate_train(server_round, replies)
        self._job.mark()
        return found


def run(job: child.Job):
    os.environ["PEER_JOB"] = os.path.abspath(sys.argv[1])
    if job.work.server != "sgd" or job.work.server_lr != 1.0:
        raise ValueError("only the plain mean is set up here")
    server, found, actors = ServerApp(), {}, job.options["actors"]

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        state = {k: v.contiguous() for k, v in network(job).state_dict().items()}
        result = Cohorts(job).start(grid, ArrayRecord(state), num_rounds=job.rounds)
        found.update(result.arrays.to_torch_state_dict())

    run_simulation(
        server,
        client,
        num_supernodes=job.work.cohort,
        backend_config={
            "init_args": {"num_cpus": actors},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    return {k: v.numpy() for k, v in found.items()}, f"{actors} actors"


if __name__ == "__main__":
    # Ray sends functions of __main__ by value; those of a module are imported by its actors.
    child.main(importlib.import_module("benchmarks.peers.flower").run, ["flwr", "ray", "torch"])
