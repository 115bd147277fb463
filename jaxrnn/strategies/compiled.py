"""How a strategy is compiled when nothing around it is."""

from functools import partial

import jax

compiled = partial(jax.jit, static_argnames=("self", "cell", "precision"))
"""For the `__call__` of a strategy: outside any `jax.jit`, a second call compiles nothing.

Without it every eager call would build its loop anew and compile it, gradients included.
"""
