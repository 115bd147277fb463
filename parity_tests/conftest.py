"""Strictest settings of JAX: float64 available, no implicit promotion of dtype or rank.

While testing, jaxtyping and beartype check the shapes in annotations at every call; see `addopts`
in pyproject.toml, where warnings are errors too.
"""

import gc
import os
import pathlib
import sys
import types

# Two workers on two cores: with more than one thread each they would slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("KERAS_BACKEND", "jax")
# The many small programs of the tests compile in a third of the time without optimisations and by
# XLA's older emitters. With XLA_FLAGS set, even to an empty string, they compile as a user's do:
# `make test-newest` and `make test-isa` run the core so.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false",
)

import jax
import pytest

# Tracing allocates millions of objects that live on: collecting them takes a twentieth of the time.
gc.set_threshold(50_000)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# The workers keep compiled programs on disk for each other and for the next run, which takes a
# quarter of the time. Processes that tests kill do not share them, for they leave half a file.
# `make clean` removes them.
jax.config.update(
    "jax_compilation_cache_dir",
    str(pathlib.Path(__file__).resolve().parents[1] / "build" / "programs"),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without",
        default="",
        metavar="PACKAGES",
        help="skip the tests that need these packages, separated by commas",
    )


def _absent(config: pytest.Config) -> set[str]:
    return set(filter(None, config.getoption("--without").split(",")))


class _Absent(types.ModuleType):
    """A package named by `--without`; any use of it raises an import error."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ModuleNotFoundError(f"No module named {self.__name__!r}", name=self.__name__)


def pytest_configure(config: pytest.Config) -> None:
    # This allows modules to be collected that import the package for some of their tests.
    for package in _absent(config):
        sys.modules[package] = _Absent(package)


def _skip_without(
    report: pytest.CollectReport | pytest.TestReport,
    error: object,
    node: pytest.Item | pytest.Collector,
):
    """Reports a failed import of a package named by `--without` as a skip."""
    while isinstance(error, BaseException):
        if isinstance(error, ImportError) and error.name:
            package = error.name.partition(".")[0]
            if package in _absent(node.config):
                report.outcome = "skipped"
                report.longrepr = (str(node.path), 1, f"Skipped: needs {package}")
        error = error.__cause__ or error.__context__


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    report = yield
    call = getattr(report, "call", None)
    if report.failed and call is not None and call.excinfo is not None:
        _skip_without(report, call.excinfo.value, collector)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if report.failed and call.excinfo is not None:
        _skip_without(report, call.excinfo.value, item)
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for package in sorted(_absent(item.config).intersection(mark.args)):
            pytest.skip(f"needs {package}")


@pytest.fixture
def absent(request: pytest.FixtureRequest) -> set[str]:
    """Packages named by `--without`."""
    return _absent(request.config)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Clears compiled programs after each module; together they take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def compilations():
    """A callable that returns the number of XLA compilations since the fixture was set up."""
    count = 0

    def listen(event: str, duration: float, **_: object) -> None:
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield lambda: count
    jax.monitoring.clear_event_listeners()
