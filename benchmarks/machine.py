"""The machine used for the measurements, and the speed of its matrix products."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import statistics
import subprocess
import time

from benchmarks.worker import call


def describe() -> dict[str, object]:
    """Processor, cores, memory, GPU and versions."""
    info = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next(
        (l.split(":")[1].strip() for l in info.splitlines() if l.startswith("model name")),
        platform.processor(),
    )
    flags = next((l.split(":")[1].split() for l in info.splitlines() if l.startswith("flags")), [])
    memory = pathlib.Path("/proc/meminfo").read_text(encoding="ascii").split()[1]
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "cpu_features": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
        "memory_gb": round(int(memory) / 2**20, 1),
        "gpu": _lines("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "commit": "".join(_lines("git", "describe", "--always", "--dirty", "--exclude=*")),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("jax", "jaxlib", "flax", "torch", "numpy")},
    }


def _lines(*command: str) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.split("\n")[:-1]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def backend() -> str:
    """Runs in a child: where JAX computes by default."""
    import jax  # noqa: PLC0415  (only children of the runner start JAX)

    return jax.default_backend()


def _best(product, wait, side: int) -> float:
    """FLOP/s of a (side, side) product, from the median of several."""
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        wait(product())
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / statistics.median(seconds[2:])


def jax_peaks() -> dict[str, float]:
    """Runs in a child: FLOP/s of float32 and bfloat16 -> float32 products in JAX."""
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415

    side = 2048 if jax.default_backend() == "cpu" else 8192
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    arrays = {name: jnp.ones((side, side), name) for name in ("float32", "bfloat16")}
    return {
        name: _best(lambda a=a: product(a), jax.block_until_ready, side)
        for name, a in arrays.items()
    }


def torch_peaks() -> dict[str, float]:
    """Runs in a child: FLOP/s of float32 (TF32 allowed) and bfloat16 products in PyTorch."""
    import torch  # noqa: PLC0415

    gpu = torch.cuda.is_available()
    torch.backends.cuda.matmul.allow_tf32 = True
    wait = (lambda _: torch.cuda.synchronize()) if gpu else (lambda _: None)
    side = 8192 if gpu else 2048
    return {
        str(kind).removeprefix("torch."): _best(lambda a=a: a @ a, wait, side)
        for kind in (torch.float32, torch.bfloat16)
        for a in [torch.ones((side, side), dtype=kind, device="cuda" if gpu else "cpu")]
    }


def peaks() -> dict[str, float]:
    """FLOP/s by type: the better of both libraries."""
    found = [call("benchmarks.machine:jax_peaks")]
    if has_torch():
        found.append(call("benchmarks.machine:torch_peaks"))
    return {name: max(f[name] for f in found) for name in found[0]}
