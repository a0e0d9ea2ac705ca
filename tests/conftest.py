"""Settings for all tests, made before JAX is imported."""
import os
import pathlib

# Two devices, so that the client axis of the mesh is exercised everywhere. The other flags
# compile four times faster to slower code; what is computed here is small.
FLAGS = ("--xla_force_host_platform_device_count=2", "--xla_backend_optimization_level=0",
         "--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR",
                      str(pathlib.Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
