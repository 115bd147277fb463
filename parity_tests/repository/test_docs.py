"""All examples in the documentation are executed: README, pages and docstrings."""

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
from scripts import run_code

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
FOUND = {m.name for m in pkgutil.walk_packages(jaxrnn.__path__, "jaxrnn.")}
MODULES = sorted({"jaxrnn", *FOUND} - {"jaxrnn.native.jaxrnn_native"})  # the kernel
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def check(test):
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    # Use JAX's default settings, as in a reader's session, not the strict ones of this suite.
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
        return  # types that users do not construct
    assert ">>>" in text or ">>>" in (inspect.getdoc(inspect.getmodule(value)) or "")


def blocks(path):
    """Python code blocks of a page, in order; a percent script is returned whole."""
    text = (ROOT / path).read_text()
    return (
        [text] if path.endswith(".py") else re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    )


def assert_as_documented(code, done):
    """Compares the output of a program with the comments after `# ->`."""
    assert done.returncode == 0, done.stderr
    wanted = re.findall(r"^# -> (.*)", code, re.M)
    if wanted:
        assert done.stdout.splitlines() == wanted


NEEDS = {"torch", "keras"}


def pages():
    found = [ROOT / "README.md", *DOCS.rglob("*.md"), *DOCS.rglob("*.py")]
    for path in sorted(str(path.relative_to(ROOT)) for path in found):
        imported = set(re.findall(r"^ *(?:import|from) (\w+)", "\n".join(blocks(path)), re.M))
        needs = NEEDS & (imported | ({"torch"} if "assert_parity" in imported else set()))
        if blocks(path):
            yield pytest.param(path, marks=pytest.mark.needs(*sorted(needs)), id=path)


@pytest.mark.parametrize("path", list(pages()))
def test_the_code_of_a_page_runs_and_prints_the_documented_output(path):
    code = "\n".join(blocks(path))
    assert_as_documented(code, run_code(code, folder=ROOT))


@pytest.mark.parametrize("path", ["README.md", "docs/index.md"])
def test_the_first_example_needs_no_pytorch(path):
    """It runs in an installation without extras, in a process that has imported nothing."""
    code = f"import sys\nsys.modules['torch'] = None\n{blocks(path)[0]}"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert_as_documented(code, done)


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_document_names_only_commands_and_files_that_exist(path):
    text, makefile = path.read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z][\w-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.M), f"make {target}"
    folders = "examples|benchmarks|jaxrnn|parity_tests|torch_ref|tools|docs"
    for name in re.findall(rf"(?<![\w/])((?:{folders})/[\w./-]*\w)", text):
        assert (ROOT / name).exists(), name


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"^ +- .*: ([\w/-]+\.(?:md|py))$", text, re.M))
    found = {str(p.relative_to(DOCS)) for p in DOCS.rglob("*") if p.suffix in (".md", ".py")}
    assert listed == found


def test_every_public_name_is_in_the_reference():
    text = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    listed = set(re.findall(r"^::: ([\w.]+)$", text, re.M))
    for part in (
        "jaxrnn",
        *(f"jaxrnn.{p}" for p in ("strategies", "testing", "training", "models")),
    ):
        module = importlib.import_module(part)
        names = [n for n in module.__all__ if not inspect.ismodule(getattr(module, n))]
        assert [n for n in names if f"{part}.{n}" not in listed] == []


def test_the_readme_is_short():
    prose = re.sub(r"^```.*?^```", "", README, flags=re.S | re.M)
    assert len(README.split()) <= 900
    assert "![" in prose


@pytest.mark.parametrize("name", ["capabilities", "sides", "times"])
def test_a_table_matches_the_output_of_its_command(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import tables

    assert tables.written(name) == tables.made(name)


def test_a_table_is_put_between_its_markers(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import tables

    monkeypatch.setattr(tables, "ROOT", tmp_path)
    document = tmp_path / tables.TABLES["rates"][0]
    document.parent.mkdir()
    document.write_text(
        "before\n<!-- rates table -->\n\nold\n\n<!-- end of rates table -->\nafter\n"
    )
    tables.put("rates", "| new |\n")
    assert tables.written("rates") == "| new |\n"
    assert document.read_text().split("\n")[:4] == ["before", "<!-- rates table -->", "", "| new |"]
    assert document.read_text().endswith("\n<!-- end of rates table -->\nafter\n")


def table_rows(name):
    """Cells of a table in docs/parity.md, without its heading and the line below it."""
    text = (DOCS / "parity.md").read_text()
    text = text.split(f"<!-- {name} table -->")[1].split(f"<!-- end of {name} table -->")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n") if line]
    return {name: cells for name, *cells in rows[2:]}


def assert_within(rows, promised):
    for row in rows:
        for figure, bound in zip(row, promised, strict=True):
            assert figure == "–" or 0 <= float(figure) <= float(bound)


def test_the_parity_table_matches_its_command():
    """It has the command's form, and no figure exceeds its tolerance."""
    import table

    rows = table_rows("parity")
    assert list(rows) == [*table.KINDS, "*promised*"]
    promised = rows.pop("*promised*")
    assert len(promised) == 2 * len(table.DTYPES)
    assert_within(rows.values(), promised)
    assert table.errors("GRU", "float64")["gradient"] <= float(promised[1])


def test_the_notebook_table_matches_its_command():
    import notebook
    import table

    rows = table_rows("notebook")
    assert list(rows) == [*notebook.ROWS, "*promised*"]
    promised = rows.pop("*promised*")
    assert promised == [f"{bound:.0e}" for bound in table.notebook_promises()]
    assert_within(rows.values(), promised)
    measured = table.notebook_errors("`EfficientLSTM`, variable lengths")
    assert_within([map(str, measured)], promised)
    # Rounding differs between machines, so only the sizes are compared, not the figures.
    written = map(float, rows["`EfficientLSTM`, variable lengths"])
    for figure, now in zip(written, measured, strict=True):
        assert now <= 30 * max(figure, 1e-16)


def test_the_notebook_table_covers_all_classes_and_tasks():
    import notebook

    with_and_without = {(name, lengths) for name, _, _, lengths in notebook.ROWS.values()}
    assert with_and_without >= {("SequenceClassifier", False), ("SequenceClassifier", True)}
    names = {name for name, _ in with_and_without}
    assert names == {name for name in jaxrnn.models.__all__ if name != "SpeakerClassifier"}
    tasks = {task.__name__ for _, _, task, _ in notebook.ROWS.values()}
    assert tasks == {"noise", "classification", "variable_lengths", "memory"}
