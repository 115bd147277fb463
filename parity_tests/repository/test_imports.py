"""Imports follow the layers of the package, and the library works without PyTorch."""

import ast
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import jaxrnn

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "jaxrnn"

# Parts of the package that each part may import. A part that is missing here fails the test.
MAY_IMPORT = {
    "cells": set(),
    "checks": {"cells"},
    "closures": {"cells", "checks"},
    "sharding": {"cells"},
    "steps": set(),
    "rows": {"cells"},
    "native": {"cells", "rows", "sharding", "steps"},
    "derivative": {"cells", "native", "rows", "sharding"},
    "strategies": {
        "cells",
        "checks",
        "closures",
        "derivative",
        "native",
        "rows",
        "sharding",
        "steps",
    },
    "layers": {"cells", "sharding", "strategies"},
    "modules": {"cells", "strategies", "layers", "checks"},
    "models": {"cells", "strategies", "layers", "checks", "modules"},
    "files": set(),
    "interchange": {"files", "sharding"},
    "testing": {"interchange"},
    "data": set(),
    "training": {"data", "interchange", "files", "layers", "sharding"},
}
FOREIGN = {"torch", "matplotlib", "tqdm", "tyro", "sktime", "torch_ref"}


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """All imported modules, each with True if importing the file imports it."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        at_once = id(node) not in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            module = node.module or ""
            yield module, at_once
            if module == "jaxrnn":
                yield from ((f"jaxrnn.{alias.name}", at_once) for alias in node.names)


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_order_of_imports(path):
    part = part_of(path)
    for name, at_once in imports(path):
        top, _, rest = name.partition(".")
        if top == "jaxrnn" and rest and part != "__init__":
            target = rest.split(".")[0]
            assert target == part or target in MAY_IMPORT[part], f"{path.name} imports {name}"
        if top in FOREIGN:
            assert top == "torch", f"{path.name} imports {name}"
            assert part == "testing", f"{path.name} imports {name}"
            assert not at_once, f"{path.name} imports {name} outside of a function"
    if part == "data":
        allowed = {"jaxrnn", "numpy", *sys.stdlib_module_names}
        assert {n.split(".")[0] for n, _ in imports(path)} <= allowed


def test_torch_ref_does_not_import_jaxrnn():
    for path in (ROOT / "torch_ref").rglob("*.py"):
        assert not [n for n, _ in imports(path) if n.split(".")[0] in ("jax", "flax", "jaxrnn")]


def test_the_map_covers_every_part():
    text = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text()))
    for part in {part_of(path) for path in FILES} - {"__init__"}:
        assert f"\n    {part} " in text


def run(code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_training_step_without_pytorch():
    """PyTorch, and packages for examples and tests only, cannot be imported here."""
    out = run(
        f"""
        import sys
        for name in {sorted(FOREIGN | {"beartype", "pytest", "hypothesis", "orbax"})}:
            sys.modules[name] = None
        import jax, jax.numpy as jnp, optax, jaxrnn, jaxrnn.testing, jaxrnn.models, jaxrnn.training
        from flax import nnx
        model = jaxrnn.LSTM(3, 5, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
        x = jnp.ones((7, 4, 3))

        @nnx.jit
        def step(model, optimizer):
            loss = lambda m: (m(x, lengths=jnp.array([7, 0, 3, 1]))[0] ** 2).sum()
            value, grads = nnx.value_and_grad(loss)(model)
            optimizer.update(model, grads)
            return value

        losses = [float(step(model, optimizer)) for _ in range(9)]
        assert losses[-1] < losses[0], losses
        try:
            jaxrnn.testing.compare(None, model, x)
        except ImportError as error:
            print(error)
        """
    )
    assert "pip install 'jaxrnn[torch]'" in out


def test_import_loads_no_optional_package():
    out = run("import sys, jaxrnn; print([m for m in ('torch', 'matplotlib') if m in sys.modules])")
    assert out.strip() == "[]"


def test_parts_are_imported_on_first_use():
    out = run(
        """
        import sys, jaxrnn
        parts = ["data", "models", "testing", "training"]
        print([part for part in parts if f"jaxrnn.{part}" in sys.modules])
        print(set(parts) <= set(dir(jaxrnn)))
        print([getattr(jaxrnn, part).__name__ for part in parts])
        print(jaxrnn.training.fit.__name__, jaxrnn.testing.compare.__name__)
        print(hasattr(jaxrnn, "nothing"))
        """
    )
    loaded, listed, names, *rest = out.splitlines()
    assert loaded == "[]"
    assert listed == "True"
    assert names == str([f"jaxrnn.{part}" for part in ("data", "models", "testing", "training")])
    assert rest == ["fit compare", "False"]


def test_the_version_is_defined_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    source = ROOT / project["tool"]["scikit-build"]["metadata"]["version"]["input"]
    found = re.search(r'^__version__ = "(\d+\.\d+\.\d+)"$', source.read_text(), re.M)
    assert found is not None
    assert found[1] == jaxrnn.__version__
