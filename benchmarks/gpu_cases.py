"""The whole of suite gpu, without a budget: every number of lanes, by network and batch.

Importing it registers the cases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from benchmarks.cases import OURS, TORCH, Result, Settings, bf16, case, describe, fedfr_case
from benchmarks.compare import TOLERANCE, Competitor
from benchmarks.problem import Case, large_case

# The cohort is as large as the memory for its previous backbones allows.
GPU_CASES = {
    f"{label}_b{batch}": large_case(batch, clients, model, depth, embedding)
    for label, model, depth, embedding, batch, clients in (
        ("mobilefacenet", "mobilefacenet", 20, 128, 16, 256),
        ("mobilefacenet", "mobilefacenet", 20, 128, 256, 64),
        ("spherenet20", "spherenet", 20, 512, 16, 64),
        ("spherenet20", "spherenet", 20, 512, 256, 40),
        ("spherenet64", "spherenet", 64, 512, 16, 40),
        ("spherenet64", "spherenet", 64, 512, 256, 40),
    )
}
GPU_LANES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
GPU_DENSE_BATCH = 4096  # most images of the plain dense step


def gpu_case(name: str, case: Case, settings: Settings, lanes: Sequence[int] = GPU_LANES) -> Result:
    """Compares float32 updates of a small cohort, then times every number of lanes in bf16."""
    few = dataclasses.replace(case, clients=min(4, case.clients), epochs=1)
    # In MobileFaceNet, batch norm amplifies rounding: even two layouts of ours differ by 1e-2.
    tolerance = TOLERANCE if case.model == "spherenet" else 3e-2
    checks = [
        dataclasses.replace(TORCH, name="check: PyTorch, float32", options={"tf32": False}),
        *(
            dataclasses.replace(
                OURS,
                name=f"check: ours, float32, {n} lanes",
                options={"lanes": n},
                tolerance=tolerance,
                env={"JAX_DEFAULT_MATMUL_PRECISION": "highest"},
            )
            for n in (1, 2)
        ),
    ]
    checked = fedfr_case(name, few, checks, dataclasses.replace(settings, repeats=0), False)
    free = dict(may_fail=True, tolerance=None)
    sweep = [
        dataclasses.replace(
            bf16(OURS), name=f"ours, {n} lanes", **free, options={"dtype": "bfloat16", "lanes": n}
        )
        for n in lanes
        if n <= case.clients
    ]
    dense = [
        Competitor(
            f"one dense network, batch {n * case.batch}",
            "benchmarks.plain_jax:dense",
            {"dtype": "bfloat16", "batch": n * case.batch},
            **free,
        )
        for n in lanes
        if n <= case.clients and n * case.batch <= GPU_DENSE_BATCH
    ]
    compiled = dict(TORCH.options, compiled=True)
    torch = [
        bf16(TORCH, None),
        bf16(
            dataclasses.replace(TORCH, name="PyTorch, compiled", options=compiled, may_fail=True),
            None,
        ),
    ]
    result = fedfr_case(
        f"{name}: {describe(case)}, bfloat16",
        case,
        [*torch, bf16(OURS, None), *sweep, *dense],
        settings,
        together=False,
    )
    return result | {"rows": checked["rows"] + result["rows"]}


def _register_gpu(name: str, settings_of_case: Case) -> None:
    case("gpu", name)(lambda settings: gpu_case(name, settings_of_case, settings))


for _name, _case in GPU_CASES.items():
    _register_gpu(_name, _case)
