"""Fixtures of the tests of `fit`: validation data, and the folder of a run of two epochs."""

import shutil
from pathlib import Path

import pytest

from jaxrnn import data, training
from small_run import epoch, sequences, start


@pytest.fixture(scope="module")
def held_back():
    return data.batches(*sequences(), 30)


@pytest.fixture(scope="module")
def half(tmp_path_factory, held_back):
    """Folder of a run of two epochs, to be copied."""
    folder = tmp_path_factory.mktemp("half")
    training.fit(*start(), epoch, epochs=2, validation=held_back, folder=folder)
    return folder


@pytest.fixture
def run(half, tmp_path):
    return Path(shutil.copytree(half, tmp_path / "run"))
