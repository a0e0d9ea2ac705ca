"""Sequential PyTorch: clients one after another in a Python loop, or divided over processes."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist

from benchmarks.peers import child
from benchmarks.peers.torch_network import Server, final_weights, network, set_threads, train


def run(job: child.Job):
    processes = job.options.get("processes", 1)
    if processes > 1:  # started by torch.distributed.run
        dist.init_process_group("gloo")
    rank = dist.get_rank() if processes > 1 else 0
    model = network(job)
    server, client = Server(job, model), copy.deepcopy(model)
    users = job.problem["cohorts"]
    threads = set_threads(job, lambda: train(job, copy.deepcopy(model), users[0, 0]))
    parameters, local = list(model.parameters()), list(client.parameters())
    for r in range(job.rounds):
        total, weight = [torch.zeros_like(p) for p in parameters], torch.zeros(1)
        for user in users[r, rank::processes]:
            with torch.no_grad():
                torch._foreach_copy_(local, parameters)
            images = train(job, client, user)
            share = float(images) if job.work.weighted else 1.0
            with torch.no_grad():
                torch._foreach_add_(total, local, alpha=share)
            weight += share
        if processes > 1:
            for tensor in (*total, weight):
                dist.all_reduce(tensor)
        server.step([t / weight for t in total])
        job.mark()
    note = f"{processes} process(es) of {threads} thread(s)"
    return final_weights(model), note


if __name__ == "__main__":
    child.main(run, ["torch"])
