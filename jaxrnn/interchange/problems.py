"""Problems with loading a mapping into a module, as error messages."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.files import Spec, escaped
from jaxrnn.interchange.entry import Entry, identity, is_array

_MOST_LINES = 10


class IncompatibleKeys(NamedTuple):
    """Names that `load_state_dict` did not load, as in PyTorch.

    `missing_keys` are the model's names without a given value, `unexpected_keys` the given names
    that the model lacks.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from jaxrnn import interchange
        >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        >>> keys = interchange.load_state_dict(model, {"bias": np.ones(2)}, strict=False)
        >>> keys.missing_keys
        ['weight']
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


class Given(NamedTuple):
    """Arrays to load by the model's names, and their names in the mapping."""

    values: dict[str, Any]
    original: dict[str, str]


def select(
    targets: list[Entry],
    mapping: Mapping[str, Any],
    prefix: str,
    rename: Callable[[str], str | None] | None,
) -> Given:
    """Entries of a mapping whose names start with `prefix`, by their names in the model.

    Raises:
        ValueError: no name starts with `prefix`, or two names become one.
    """
    values: dict[str, Any] = {}
    original: dict[str, str] = {}
    for key, value in mapping.items():
        if not isinstance(key, str) or not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        new = name if rename is None else rename(name)
        if new is None:
            continue
        if new in values:
            raise ValueError(
                f"Nothing was loaded: `{escaped(original[new])}` and `{escaped(key)}` would both "
                f"be loaded as `{escaped(new)}`."
            )
        values[new], original[new] = value, key
    if prefix and mapping and not original:
        example = escaped(str(next(iter(mapping))))
        raise ValueError(
            f"Nothing was loaded: no name that is kept starts with `{escaped(prefix)}`; "
            f"the given state's first name is `{example}`."
        )
    for entry in targets:
        for alias in entry.aliases:
            if alias in values and entry.name not in values:
                values[entry.name], original[entry.name] = values.pop(alias), original.pop(alias)
    return Given(values, original)


def check(targets: list[Entry], given: Given, strict: bool) -> IncompatibleKeys:
    """Check the given values against the model, and return the unmatched names.

    Raises:
        ValueError: for a value that does not fit or, if `strict`, an unmatched name.
    """
    values = given.values
    covered = {identity(leaf) for entry in targets if entry.name in values for leaf in entry.leaves}
    misfits: list[str] = []
    missing, matched = [], 0
    for entry in targets:
        if entry.ignored_on_load:
            continue
        if entry.name in values:
            matched += 1
            misfits += _misfit(entry, values[entry.name], given.original[entry.name])
        elif not covered.issuperset(map(identity, entry.leaves)):
            missing.append(entry.name)
    known = {entry.name for entry in targets}
    unexpected = sorted(given.original[name] for name in values if name not in known)
    if not matched and (sentence := _wrapper(known, values)):
        raise ValueError(f"Nothing was loaded: {sentence}")
    if strict and missing and (sentence := _prefix(set(missing), matched, given)):
        raise ValueError(f"Nothing was loaded: {sentence}")
    if strict:
        misfits += _reparametrized(missing, unexpected)
        misfits += [f"`{name}` is missing from the given state." for name in missing]
        misfits += [
            f"`{escaped(n)}` is in the given state but not in the model." for n in unexpected
        ]
    raise_if(misfits)
    return IncompatibleKeys(missing, unexpected)


def raise_if(problems: list[str]) -> None:
    if problems:
        lines = problems[:_MOST_LINES]
        if more := len(problems) - len(lines):
            lines.append(f"... and {more:,} more.")
        raise ValueError("\n".join(["Nothing was loaded:", *lines]))


def _misfit(entry: Entry, value: Any, name: str) -> Iterable[str]:
    where = f"`{escaped(name)}`"
    if not isinstance(value, np.ndarray | jax.Array | Spec):
        kind = type(value).__name__
        yield f"{where} is a {kind} in the given state, not an array to be read."
    elif tuple(value.shape) != entry.shape:
        yield (
            f"{where} has shape {tuple(value.shape)} in the given state "
            f"but {entry.shape} in the model."
        )
    elif not _castable(value.dtype, entry.dtype):
        yield f"{where} has dtype {value.dtype} in the given state but {entry.dtype} in the model."


def _castable(source: Any, target: Any) -> bool:
    """True if the cast keeps the kind: booleans become integers, real or complex, never back."""
    kinds = [jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating]
    found = [[i for i, k in enumerate(kinds) if jnp.issubdtype(d, k)] for d in (source, target)]
    return all(found) and found[0] <= found[1]


def _wrapper(known: set[str], values: Mapping[str, Any]) -> str | None:
    """Advice for a training checkpoint that holds the model's mapping as one of its values."""
    for key, inner in values.items():
        if isinstance(inner, Mapping) and any(map(is_array, inner.values())):
            prefix, _ = _most_common(_prefixes(known, inner))
            options = f', prefix="{escaped(prefix)}"' if prefix else ""
            key = escaped(key)
            return (
                f"the given mapping is a training checkpoint, whose `{key}` holds the model's "
                f'arrays. Load that: `load_state_dict(module, mapping["{key}"]{options})`.'
            )
    return None


def _prefix(missing: set[str], matched: int, given: Given) -> str | None:
    """Advice for names that differ by a prefix, of the given state or of the model."""
    names = given.values
    prefix, count = _most_common(_prefixes(missing, names))
    text = escaped(prefix)
    if prefix and all(name.startswith(prefix) for name in names):
        return f'every name in the given state starts with `{text}`. Pass `prefix="{text}"`.'
    if prefix and not matched and count == len(missing):
        return f'the given state has the model\'s names after `{text}`. Pass `prefix="{text}"`.'
    prefix, count = _most_common(_prefixes(set(names), missing))
    if prefix and not matched and count == len(names):
        return (
            f"the model's names start with `{prefix}`, those in the given state do not. "
            f'Pass `rename=lambda name: "{prefix}" + name`, or load into that part of the model.'
        )
    return None


def _most_common(counts: Counter[str]) -> tuple[str, int]:
    return counts.most_common(1)[0] if counts else ("", 0)


def _prefixes(suffixes: set[str], names: Iterable[str]) -> Counter[str]:
    """Count of names that are a prefix (with its dot) and one of the suffixes, by prefix."""
    parts = 1 + max((suffix.count(".") for suffix in suffixes), default=0)
    found: Counter[str] = Counter()
    for name in names:
        pieces = str(name).rsplit(".", parts)
        for i in range(len(pieces)):
            suffix = ".".join(pieces[i:])
            if suffix in suffixes:
                found[str(name)[: len(str(name)) - len(suffix)]] += 1
    return found


_REPARAMETRIZED = {
    "weight_norm": ("{stem}{name}_g", "{stem}parametrizations.{name}.original0"),
    "spectral_norm": ("{stem}{name}_orig", "{stem}parametrizations.{name}.original"),
}
_REMEDIES = {
    "weight_norm": "Wrap the layer in `nnx.WeightNorm`, or fold the norm",
    "spectral_norm": "Fold the norm",
}


def _reparametrized(missing: list[str], unexpected: list[str]) -> Iterable[str]:
    """Advice for parameters that PyTorch keeps as the parts of a weight or spectral norm."""
    names = set(unexpected)
    for name in missing:
        stem, dot, last = name.rpartition(".")
        for norm, patterns in _REPARAMETRIZED.items():
            if names & {pattern.format(stem=stem + dot, name=last) for pattern in patterns}:
                yield (
                    f"`{name}` is held in parts by PyTorch's {norm}. {_REMEDIES[norm]} into the "
                    "weight in PyTorch: `torch.nn.utils.parametrize.remove_parametrizations`, or "
                    f"`torch.nn.utils.remove_{norm}` for the older style."
                )
