"""What the documentation shows is executed: README and every docstring's example."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jaxrnn
import jaxrnn.models

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FOUND = {m.name for m in pkgutil.walk_packages(jaxrnn.__path__, "jaxrnn.")}
MODULES = sorted({"jaxrnn", *FOUND} - {"jaxrnn.native.jaxrnn_native"})  # the kernel
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def check(test):
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    # A reader's session has JAX's defaults, not the strict ones of this suite.
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        failed, _ = runner.run(test)
    assert not failed, f"{test.name}: see the captured output"


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name, absent):
    module = importlib.import_module(name)
    tests = [t for t in doctest.DocTestFinder(exclude_empty=True).find(module, name) if t.examples]
    ready = [t for t in tests if not absent.intersection(re.findall(r"\w+", t.docstring))]
    for test in ready:
        check(test)
    if len(ready) < len(tests):
        pytest.skip(f"{len(tests) - len(ready)} of {len(tests)} examples need {', '.join(absent)}")


def _public():
    seen = set()
    for name in MODULES:
        module = importlib.import_module(name)
        for key in getattr(module, "__all__", []):
            value = getattr(module, key)
            if (inspect.isclass(value) or inspect.isfunction(value)) and id(value) not in seen:
                seen.add(id(value))
                yield pytest.param(value, id=f"{name}.{key}")


@pytest.mark.parametrize("value", list(_public()))
def test_every_public_name_is_documented(value):
    text = inspect.getdoc(value)
    assert text
    if value.__name__ in ("InputError", "Report", "Row", "Scores", "Strategy"):
        return  # types that no one calls by hand
    assert ">>>" in text or ">>>" in (inspect.getdoc(inspect.getmodule(value)) or "")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.S | re.M)


@pytest.mark.needs("torch")
def test_readme_code_runs_and_prints_what_it_says():
    """All Python blocks in order, as one session; output stands in comments after `# ->`."""
    code = blocks("python")
    assert code
    script, wanted = [], []
    for block in code:
        script.append(block)
        wanted += re.findall(r"# -> (.*)", block)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(script)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[: len(wanted)] == wanted


def test_the_first_example_needs_no_pytorch():
    """`pip install .` alone runs it."""
    script = "import sys\nsys.modules['torch'] = None\n" + blocks("python")[0]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == re.findall(r"# -> (.*)", blocks("python")[0])


def test_readme_names_only_commands_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.M), f"make {target}"
    for path in re.findall(
        r"`?((?:examples|benchmarks|jaxrnn|parity_tests|torch_ref)/[\w./-]+)", README
    ):
        assert (ROOT / path).exists(), path


def rows_between(begin, end):
    """The cells of a table in the README, its heading and the line under it left out."""
    text = README.split(begin)[1].split(end)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n") if line]
    return {name: cells for name, *cells in rows[2:]}


def assert_within(rows, promised):
    for row in rows:
        for figure, bound in zip(row, promised, strict=True):
            assert figure == "–" or 0 <= float(figure) <= float(bound)


def test_the_parity_table_in_the_readme_is_the_commands():
    """Its form is the command's, and no figure in it is beyond what is promised."""
    import table

    rows = rows_between(table.BEGIN, table.END)
    assert list(rows) == [*table.KINDS, "*promised*"]
    promised = rows.pop("*promised*")
    assert len(promised) == 2 * len(table.DTYPES)
    assert_within(rows.values(), promised)
    assert table.errors("GRU", "float64")["gradient"] <= float(promised[1])


def test_the_notebooks_table_in_the_readme_is_the_commands():
    import notebook
    import table

    rows = rows_between(table.NOTEBOOK_BEGIN, table.NOTEBOOK_END)
    assert list(rows) == [*notebook.ROWS, "*promised*"]
    promised = rows.pop("*promised*")
    assert promised == [f"{bound:.0e}" for bound in table.notebook_promises()]
    assert_within(rows.values(), promised)
    measured = table.notebook_errors("`EfficientLSTM`, variable lengths")
    assert_within([map(str, measured)], promised)
    # Another machine rounds otherwise, so no figure is compared: they have the same size.
    written = map(float, rows["`EfficientLSTM`, variable lengths"])
    for figure, now in zip(written, measured, strict=True):
        assert now <= 30 * max(figure, 1e-16)


def test_the_notebooks_classes_and_tasks_have_their_rows():
    import notebook

    with_and_without = {(name, lengths) for name, _, _, lengths in notebook.ROWS.values()}
    assert with_and_without >= {("SequenceClassifier", False), ("SequenceClassifier", True)}
    names = {name for name, _ in with_and_without}
    assert names == {name for name in jaxrnn.models.__all__ if name != "SpeakerClassifier"}
    tasks = {task.__name__ for _, _, task, _ in notebook.ROWS.values()}
    assert tasks == {"noise", "classification", "variable_lengths", "memory"}
