"""pfl-research: its own algorithm, backend and PyTorch model, in one process or several."""

from __future__ import annotations

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints, WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel

from benchmarks.peers import child
from benchmarks.peers.torch_network import Server, final_weights, network, set_threads, tensors


class Mark(TrainingProcessCallback):
    """Notes the end of every round."""

    def __init__(self, job: child.Job):
        self._job = job

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self._job.mark()
        return False, Metrics()


def algorithm(job: child.Job):
    """Everything but the loop: (algorithm, arguments of its run)."""
    work = job.work
    module = network(job)
    order = iter(job.problem["cohorts"].reshape(-1).tolist())

    def dataset(user):
        return Dataset(list(tensors(job, user)), user_id=str(user))

    data = FederatedDataset(dataset, lambda: next(order))
    weighting = WeightByDatapoints() if work.weighted else WeightByUser()
    model = PyTorchModel(module, torch.optim.SGD, Server(job, module).optimizer)
    parameters = NNAlgorithmParams(
        central_num_iterations=job.rounds,
        evaluation_frequency=10**9,
        train_cohort_size=work.cohort,
        val_cohort_size=None,
    )
    training = NNTrainHyperParams(
        local_num_epochs=work.epochs,
        local_learning_rate=work.lr,
        local_batch_size=work.batch,
    )
    return module, dict(
        algorithm_params=parameters,
        backend=SimulatedBackend(data, data, [weighting]),
        model=model,
        model_train_params=training,
        callbacks=[Mark(job)],
        send_metrics_to_platform=False,
    )


def run(job: child.Job):
    from benchmarks.peers.torch_network import train  # noqa: PLC0415

    processes = job.options.get("processes", 1)
    threads = set_threads(job, lambda: train(job, network(job), job.problem["cohorts"][0, 0]))
    module, arguments = algorithm(job)
    FederatedAveraging().run(**arguments)
    return final_weights(module), f"{processes} process(es) of {threads} thread(s)"


if __name__ == "__main__":
    child.main(run, ["pfl", "torch"])
