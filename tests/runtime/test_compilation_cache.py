"""Where compiled programs are kept, and that the next process finds them there."""

import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from fedfr_jax.engine import devices
from fedfr_jax.runtime.compilation_cache import use_compilation_cache

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def as_before(monkeypatch, tmp_path):
    """The other tests' cache is theirs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compile_something(scale):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.jit(lambda x: jnp.sin(x) * scale)(jnp.ones(3)).block_until_ready()


def programs(folder):
    return {path.name for path in folder.rglob("jit__lambda*-cache")}


def test_programs_are_in_the_user_s_cache_folder_even_if_jax_was_used_before(tmp_path):
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    compile_something(2.0)  # JAX decides now that it has no cache
    folder = use_compilation_cache("auto")
    assert tmp_path / "home" / "fedfr_jax" / "compiled" in folder.parents
    compile_something(3.0)
    kept = programs(folder)
    assert kept
    jax.clear_caches()
    compile_something(3.0)  # found there
    assert programs(folder) == kept


def test_a_folder_that_jax_was_given_is_kept(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    size = jax.config.jax_compilation_cache_max_size
    assert use_compilation_cache("auto") == tmp_path / "own"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    assert jax.config.jax_compilation_cache_max_size == size
    folder = use_compilation_cache(str(tmp_path / "asked"))  # the setting is the user's last word
    assert tmp_path / "asked" in folder.parents


def test_off_keeps_nothing(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert use_compilation_cache("off") is None
    compile_something(5.0)
    assert not (tmp_path / "own").exists() or not programs(tmp_path / "own")


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(tmp_path):
    (tmp_path / "file").write_text("")
    assert use_compilation_cache(str(tmp_path / "file" / "below")) is None


def test_loops_are_not_unrolled_unless_the_user_has_chosen_options(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    devices.use_cpu_devices(0)
    flags = os.environ["XLA_FLAGS"]
    assert "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling" in flags
    devices.use_cpu_devices(0)
    assert os.environ["XLA_FLAGS"] == flags  # once
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_extra_options=xla_cpu_optimize_for_size")
    devices.use_cpu_devices(0)
    assert "unrolling" not in os.environ["XLA_FLAGS"]
