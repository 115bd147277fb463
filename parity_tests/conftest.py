"""The strictest settings that JAX has: float64 at hand, no silent promotion of dtype or rank.

Shapes in annotations are checked at every call while testing, by jaxtyping and beartype; see
`addopts` in pyproject.toml. Warnings are errors there too.
"""

import os

# Two workers on two cores: more threads than one each only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """What a module compiled no other module runs; all together they take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def compilations():
    """A callable that says how often XLA has compiled since the fixture was set up."""
    count = 0

    def listen(event: str, duration: float, **_: object) -> None:
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield lambda: count
    jax.monitoring.clear_event_listeners()
