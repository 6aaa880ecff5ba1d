"""Every layer that has a masked twin, with how it is made and called, and its weights by hand."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import eqsparse


@dataclasses.dataclass(frozen=True)
class Kind:
    """One layer: `plain(*args, **kwargs, key=key)`, called on `inputs`; `bad` are inputs it refuses."""

    twin: Any
    plain: Any
    args: tuple
    kwargs: dict
    inputs: Callable[[Any], tuple]
    bad: tuple | None
    weights: dict[str, tuple[int, ...]]


def _normal(*shape):
    return lambda dtype: (jnp.asarray(np.random.default_rng(1).normal(size=shape), dtype),)


def _cell(outer, hidden, states):
    def inputs(dtype):
        rng = np.random.default_rng(1)
        h = [jnp.asarray(rng.normal(size=hidden), dtype) for _ in range(states)]
        return jnp.asarray(rng.normal(size=outer), dtype), h[0] if states == 1 else tuple(h)

    return inputs


_WRONG = (jnp.zeros((2, 3, 5, 7, 11)),)

ZOO = {
    "Linear": Kind(
        eqsparse.MaskedLinear, eqx.nn.Linear, (6, 5), {}, _normal(6), (jnp.zeros((7,)),), {"weight": (5, 6)}
    ),
    "Linear no bias": Kind(
        eqsparse.MaskedLinear, eqx.nn.Linear, (6, 5), {"use_bias": False}, _normal(6), None, {"weight": (5, 6)}
    ),
    "Linear scalars": Kind(
        eqsparse.MaskedLinear,
        eqx.nn.Linear,
        ("scalar", "scalar"),
        {},
        _normal(),
        (jnp.zeros((2,)),),
        {"weight": (1, 1)},
    ),
    "Conv": Kind(
        eqsparse.MaskedConv,
        eqx.nn.Conv,
        (1, 3, 4, 3),
        {"padding": "SAME"},
        _normal(3, 7),
        _WRONG,
        {"weight": (4, 3, 3)},
    ),
    "Conv1d": Kind(
        eqsparse.MaskedConv1d,
        eqx.nn.Conv1d,
        (3, 4, 3),
        {"padding": 1, "padding_mode": "CIRCULAR"},
        _normal(3, 7),
        _WRONG,
        {"weight": (4, 3, 3)},
    ),
    "Conv2d": Kind(
        eqsparse.MaskedConv2d,
        eqx.nn.Conv2d,
        (4, 6, (3, 2)),
        {"groups": 2, "stride": 2},
        _normal(4, 5, 6),
        _WRONG,
        {"weight": (6, 2, 3, 2)},
    ),
    "Conv3d": Kind(
        eqsparse.MaskedConv3d,
        eqx.nn.Conv3d,
        (2, 3, 2),
        {},
        _normal(2, 3, 3, 3),
        (jnp.zeros((2, 3, 3)),),
        {"weight": (3, 2, 2, 2, 2)},
    ),
    "ConvTranspose": Kind(
        eqsparse.MaskedConvTranspose,
        eqx.nn.ConvTranspose,
        (1, 3, 4, 3),
        {},
        _normal(3, 5),
        _WRONG,
        {"weight": (4, 3, 3)},
    ),
    "ConvTranspose1d": Kind(
        eqsparse.MaskedConvTranspose1d,
        eqx.nn.ConvTranspose1d,
        (3, 4, 3),
        {"stride": 2},
        _normal(3, 5),
        _WRONG,
        {"weight": (4, 3, 3)},
    ),
    "ConvTranspose2d": Kind(
        eqsparse.MaskedConvTranspose2d,
        eqx.nn.ConvTranspose2d,
        (3, 4, 2),
        {"use_bias": False},
        _normal(3, 4, 4),
        _WRONG,
        {"weight": (4, 3, 2, 2)},
    ),
    "ConvTranspose3d": Kind(
        eqsparse.MaskedConvTranspose3d,
        eqx.nn.ConvTranspose3d,
        (2, 3, 2),
        {},
        _normal(2, 2, 2, 2),
        (jnp.zeros((2, 3, 3)),),
        {"weight": (3, 2, 2, 2, 2)},
    ),
    "Embedding": Kind(
        eqsparse.MaskedEmbedding,
        eqx.nn.Embedding,
        (7, 5),
        {},
        lambda dtype: (jnp.asarray(3),),
        (jnp.zeros((2, 2), int),),
        {"weight": (7, 5)},
    ),
    "GRUCell": Kind(
        eqsparse.MaskedGRUCell,
        eqx.nn.GRUCell,
        (4, 3),
        {},
        _cell(4, 3, 1),
        (jnp.zeros((5,)), jnp.zeros((3,))),
        {"weight_hh": (9, 3), "weight_ih": (9, 4)},
    ),
    "LSTMCell": Kind(
        eqsparse.MaskedLSTMCell,
        eqx.nn.LSTMCell,
        (4, 3),
        {"use_bias": False},
        _cell(4, 3, 2),
        (jnp.zeros((5,)), (jnp.zeros((3,)), jnp.zeros((3,)))),
        {"weight_hh": (12, 3), "weight_ih": (12, 4)},
    ),
}


def make_plain(kind: Kind, dtype=jnp.float32):
    return kind.plain(*kind.args, **kind.kwargs, dtype=dtype, key=jax.random.key(3))


def random_masks(kind: Kind) -> dict[str, np.ndarray]:
    """Masks that keep six in ten, drawn by NumPy."""
    rng = np.random.default_rng(7)
    return {name: rng.random(shape) < 0.6 for name, shape in sorted(kind.weights.items())}


def with_zeros(layer, masks):
    """The plain layer with zeros written in, by NumPy."""
    names = sorted(masks)
    zeroed = [jnp.asarray(np.where(masks[n], np.asarray(getattr(layer, n)), 0)) for n in names]
    return eqx.tree_at(lambda x: [getattr(x, n) for n in names], layer, zeroed)


def same_bits(a, b) -> bool:
    """Whether two PyTrees have equal leaves: arrays of equal dtypes and bytes, anything else equal."""
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))


def _same(x, y) -> bool:
    if not (eqx.is_array(x) and eqx.is_array(y)):
        return x == y
    return x.dtype == y.dtype and x.shape == y.shape and np.asarray(x).tobytes() == np.asarray(y).tobytes()
