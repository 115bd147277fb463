"""Settings that differ between a PyTorch module and its JAX counterpart, one sentence each.

They are checked only if the modules disagree: weights are loaded by name, settings are not.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any

from flax import nnx

from jaxrnn.testing.copies import import_torch


def find(theirs: Any, ours: nnx.Module, failures: Collection[str]) -> list[str]:
    """Sentences on the settings of PyTorch layers that their Flax counterparts do not share.

    Args:
        failures: names of the rows that disagree.
    """
    twins = _by_name(ours)
    sentences: list[str] = []
    for name, part in theirs.named_modules():
        place = f"`{name}`" if name else "the module"
        weight = f"{name}.weight" if name else "weight"
        sentences += _embedding(part, place, weight in failures)
        sentences += _normalisation(part, twins.get(name), place)
    return sentences


def find_gelu(run: Callable[[], Any], jaxpr: Callable[[], str]) -> list[str]:
    """A sentence if one side computes the exact GELU and the other the tanh approximation.

    Args:
        run: calls the PyTorch module.
        jaxpr: returns the JAX module's jaxpr as text.
    """
    forms = _gelu_forms(run)
    if not forms:
        return []
    exact_in_jax = "erf" in jaxpr()
    if "none" in forms and not exact_in_jax:
        return [
            "PyTorch computes the exact GELU and JAX computes no erf: `jax.nn.gelu` is the tanh "
            "form unless `approximate=False`."
        ]
    if "tanh" in forms and exact_in_jax:
        return [
            'PyTorch computes the tanh form of GELU (approximate="tanh") and JAX the exact one '
            "(approximate=False)."
        ]
    return []


def _by_name(root: nnx.Module) -> dict[str, nnx.Module]:
    """Submodules by PyTorch's names, which omit the `layers` of `nnx.Sequential`."""
    parts = dict(nnx.iter_modules(root))

    def named(path: tuple[Any, ...]) -> str:
        kept = [
            str(key)
            for i, key in enumerate(path)
            if not (key == "layers" and isinstance(parts.get(path[:i]), nnx.Sequential))
        ]
        return ".".join(kept)

    return {named(path): part for path, part in parts.items()}


def _embedding(part: Any, place: str, fails: bool) -> Iterator[str]:
    nn = import_torch().nn
    if not isinstance(part, nn.Embedding | nn.EmbeddingBag):
        return
    if fails and part.padding_idx is not None:
        row = part.padding_idx
        yield f"{place} has padding_idx={row}: PyTorch gives that row no gradient, Flax does."
    if fails and part.scale_grad_by_freq:
        yield (
            f"{place} has scale_grad_by_freq=True: PyTorch divides the gradient of each row by "
            "its count in the batch, Flax does not."
        )
    if part.max_norm is not None:
        yield (
            f"{place} has max_norm={part.max_norm}: PyTorch rescales longer rows in place at each "
            "call, Flax does not."
        )


def _normalisation(part: Any, twin: Any, place: str) -> Iterator[str]:
    eps, epsilon = getattr(part, "eps", None), getattr(twin, "epsilon", None)
    if isinstance(eps, float) and isinstance(epsilon, float) and eps != epsilon:
        yield f"{place} has eps={eps:g} in PyTorch and epsilon={epsilon:g} in JAX."
    if not isinstance(part, import_torch().nn.modules.batchnorm._BatchNorm):
        return
    if isinstance(twin, nnx.BatchNorm) and part.momentum is not None:
        expected = 1 - part.momentum
        if abs(twin.momentum - expected) > 1e-9:
            yield (
                f"{place} has momentum={part.momentum:g} in PyTorch, which is "
                f"momentum={expected:g} in Flax, not {twin.momentum:g}."
            )


def _gelu_forms(run: Callable[[], Any]) -> set[str]:
    """Values of `approximate` in PyTorch's calls of GELU."""
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = import_torch().ops.aten
    forms: set[str] = set()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if func.overloadpacket is aten.gelu:
                forms.add(kwargs.get("approximate", "none"))
            return func(*args, **kwargs)

    with Recorder():
        run()
    return forms
