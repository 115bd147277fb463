"""Signatures, help, warnings and errors about arguments name the class that was called."""

import inspect
import pydoc
import re
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import strategies
from kinds import CELLS, LAYERS, rngs

F32 = jnp.float32


def test_repr_shows_the_strategy_and_the_arguments():
    text = repr(jaxrnn.LSTM(3, 5, strategy=strategies.Scan(unroll=4), rngs=rngs()))
    for part in ("strategy=Scan(unroll=4)", "input_size=3", "hidden_size=5", "weight_hh_l0"):
        assert part in text


class Subclass(jaxrnn.GRU):
    """A user's own, with another constructor around ours."""

    def __init__(self, units, *, dropout=0.0, rngs):
        super().__init__(3, units, dropout=dropout, rngs=rngs)


@pytest.mark.parametrize(
    "make",
    [
        *(partial(cls, 3) for cls in LAYERS),
        Subclass,
    ],
    ids=["RNN", "GRU", "LSTM", "a subclass"],
)
def test_the_dropout_warning_points_to_the_line_that_makes_the_module(make):
    with pytest.warns(UserWarning, match="num_layers greater than 1") as caught:
        make(5, dropout=np.float32(0.5), rngs=rngs())
    assert caught[0].filename == __file__


@pytest.mark.parametrize("cls", [*LAYERS, *CELLS, Subclass])
def test_signatures_show_the_arguments(cls):
    shown = str(inspect.signature(cls))
    first = "units" if cls is Subclass else "input_size: int, hidden_size: int"
    assert shown.startswith(f"({first}")
    assert "rngs" in shown
    assert "nonlinearity" in shown or cls not in (jaxrnn.RNN, jaxrnn.RNNCell)
    text = pydoc.render_doc(cls, renderer=pydoc.plaintext)
    unwrapped = re.sub(r"[\s|]", "", text)
    assert f"class{cls.__name__}(" in unwrapped
    assert f"|{cls.__name__}({first}".replace(" ", "")[1:] in unwrapped.split("Methodsdefined")[0]
    of_a_call = inspect.signature(
        cls(5, rngs=rngs()) if cls is Subclass else cls(3, 5, rngs=rngs())
    )
    assert list(of_a_call.parameters)[:2] == ["input", "hx"]


@pytest.mark.parametrize("cls", LAYERS + CELLS)
def test_a_forgotten_argument_names_the_class(cls):
    with pytest.raises(TypeError, match=rf"^{cls.__name__}\.__init__\(\) missing .* 'hidden_size'"):
        cls(3, rngs=rngs())
    with pytest.raises(TypeError, match=rf"^`{cls.__name__}` takes .* missing .* 'input'"):
        cls(3, 5, rngs=rngs())()


class Own(jaxrnn.GRU):
    """A subclass without a constructor of its own."""


@pytest.mark.parametrize("cls", [*LAYERS, *CELLS, Own])
def test_errors_about_arguments_name_the_class_that_was_called(cls):
    for options, told in (
        ({"rngs": nnx.Rngs(0), "batchfirst": True}, "unexpected keyword argument 'batchfirst'"),
        ({}, "missing 1 required keyword-only argument: 'rngs'"),
    ):
        with pytest.raises(TypeError, match=rf"^{cls.__name__}\.__init__\(\) .*{told}$"):
            cls(3, 4, **options)
