"""BlazeFL: its own federated averaging, with clients in threads or in processes."""

from __future__ import annotations

import pathlib
import tempfile

import torch
from blazefl.contrib.fedavg import (
    FedAvgBaseServerHandler,
    FedAvgProcessPoolClientTrainer,
    FedAvgThreadPoolClientTrainer,
)
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers import child
from benchmarks.peers.torch_network import Network, final_weights, tensors
from benchmarks.peers.work import weights_of


class Models:
    """BlazeFL's model selector: the network with the initial weights."""

    def __init__(self, job: child.Job):
        self._work, self._rates, self._weights = job.work, job.rates, weights_of(job.problem)

    def select_model(self, model_name: str) -> torch.nn.Module:
        torch.set_num_threads(1)  # a client per core; also in BlazeFL's processes
        found = Network(self._work, self._rates)
        found.load_state_dict({k: torch.from_numpy(v) for k, v in self._weights.items()})
        return found


class Users:
    """BlazeFL's partitioned data set: a user's images in their order, in batches."""

    def __init__(self, job: child.Job):
        self._users = {
            int(u): TensorDataset(*(t.contiguous() for t in tensors(job, u)))
            for u in range(job.work.users)
        }

    def get_dataset(self, type_, cid):
        return self._users[cid]

    def set_dataset(self, type_, cid, dataset):
        """Called in a process that ends after the round; nothing changes."""

    def get_dataloader(self, type_, cid, batch_size, generator=None):
        return DataLoader(self._users[cid], batch_size=batch_size)


def trainer(job: child.Job, users: Users, folder: str):
    work, count = job.work, job.options["parallel"]
    given = dict(
        model_selector=Models(job),
        model_name="cnn",
        dataset=users,
        device="cpu",
        num_clients=work.users,
        epochs=work.epochs,
        batch_size=work.batch,
        lr=work.lr,
        seed=0,
        num_parallels=count,
    )
    if job.options["kind"] == "threads":
        return FedAvgThreadPoolClientTrainer(**given)
    share, state = pathlib.Path(folder, "share"), pathlib.Path(folder, "state")
    return FedAvgProcessPoolClientTrainer(
        **given, share_dir=share, state_dir=state, ipc_mode="SHARED_MEMORY"
    )


def run(job: child.Job):
    work, users = job.work, Users(job)
    handler = FedAvgBaseServerHandler(
        Models(job), "cnn", users, job.rounds, work.users, 1.0, "cpu", work.batch, 0
    )
    with tempfile.TemporaryDirectory() as folder:
        clients = trainer(job, users, folder)
        while not handler.if_stop():
            chosen = handler.sample_clients()
            clients.local_process(handler.downlink_package(), chosen)
            for package in clients.uplink_package():
                handler.load(package)
            job.mark()
    return final_weights(handler.model), f"{job.options['parallel']} {job.options['kind']}"


if __name__ == "__main__":
    child.main(run, ["blazefl", "torch"])
