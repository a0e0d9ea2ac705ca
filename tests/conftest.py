"""Settings for all tests, made before JAX is imported."""

import ctypes
import gc
import importlib.metadata
import os
import pathlib
import resource

import pytest

JAXLIB = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
# Two devices, so that the client axis of the mesh is exercised everywhere. The other flags
# compile four times faster to slower code; what is computed here is small. XLA ends the process
# where it does not know a flag: jaxlib 0.12 has no other emitters any more.
FLAGS = (
    "--xla_force_host_platform_device_count=2",
    "--xla_backend_optimization_level=0",
    *(["--xla_cpu_use_fusion_emitters=false"] if JAXLIB < (0, 11) else []),
)
# One device may wait long for the other; see runtime/simulation.py. jax 0.7 has no such flags.
WAIT = (
    ()
    if JAXLIB < (0, 8)
    else tuple(
        f"--xla_cpu_collective_call_{name}_timeout_seconds=3600"
        for name in ("warn_stuck", "terminate")
    )
)
# What engine/devices.py adds: flags that change in between would give programs other names in the
# compilation cache.
LOOPS = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling"
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS, *WAIT, LOOPS])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".jax_cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


MOST_MEMORY = 1.3 * 2**30  # bytes that a worker may hold before it drops compiled programs


def drop_programs():
    """Forgets compiled programs and hands their memory back."""
    import jax  # noqa: PLC0415 - after the settings above

    jax.clear_caches()
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc keeps freed memory
        libc.malloc_trim(0)


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module():
    """Tests of one module share compiled programs, those of two modules do not."""
    yield
    drop_programs()


@pytest.fixture(autouse=True)
def programs_within_memory():
    """A module with very many programs keeps the latest ones only."""
    yield
    statm = pathlib.Path("/proc/self/statm")
    if statm.exists() and int(statm.read_text().split()[1]) * resource.getpagesize() > MOST_MEMORY:
        drop_programs()


@pytest.fixture
def blank_figures(monkeypatch):
    """Figures are saved blank: drawing them is three quarters of a small run's time."""
    import small  # noqa: PLC0415 - after the settings above

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", small.save_blank)


def pytest_sessionfinish(session):
    """Each worker hands its peak memory and CPU time to the process that reports them."""
    if hasattr(session.config, "workeroutput"):
        own = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        session.config.workeroutput["used"] = [
            own.ru_maxrss / 2**20,
            sum(u.ru_utime + u.ru_stime for u in (own, children)),
        ]


class Workers:
    """What the workers used, in the last lines of the output."""

    def __init__(self):
        self.lines = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        if "used" in getattr(node, "workeroutput", {}):
            self.lines.append(
                "{}: {:.1f} GB at most, {:.0f} s of CPU time".format(
                    node.gateway.id, *node.workeroutput["used"]
                )
            )

    def pytest_terminal_summary(self, terminalreporter):
        for line in sorted(self.lines):
            terminalreporter.write_line(line)


def pytest_configure(config):
    config.pluginmanager.register(Workers())
