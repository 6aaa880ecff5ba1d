"""Criteria that need nothing but weights, gradients and keys."""

import math
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, PRNGKeyArray, Real, UInt32

from .._mask import made_as
from .._selection import in_float32, on_one_device
from .base import AbstractCriterion


@final
class Magnitude(AbstractCriterion):
    """`|w|`, in the weight's own precision.

    ??? cite

        [To prune, or not to prune](https://arxiv.org/abs/1710.01878)
    """

    def score(self, weight: Inexact[Array, "*shape"]) -> Real[Array, "*shape"]:
        return jnp.abs(weight)


@final
class Random(AbstractCriterion):
    """Lots: 32 random bits for each weight, in any dtype, so that ties don't favour an index.

    The lots of a path depend on the key and the path alone; the layers of a stack draw their own.
    """

    needs = ("key",)

    def score(self, weight: Inexact[Array, "*shape"], *, key: PRNGKeyArray) -> UInt32[Array, "*shape"]:
        return made_as(lambda key: _lots(key, weight.shape), weight, key)


def _lots(key: PRNGKeyArray, shape: tuple[int, ...]) -> UInt32[Array, "*shape"]:
    """Random bits. Of a large array each part has a key of its own: drawn at once they take four times as much scratch
    memory as there are lots."""
    draw = lambda shape: lambda key: jax.random.bits(key, shape, jnp.uint32)
    lead = next((d for d in range(len(shape), 0, -1) if math.prod(shape[d:]) >= _PART), 0)
    if lead == 0 or math.prod(shape) < _LARGE:
        return draw(shape)(key)
    keys, each = jax.random.split(key, shape[:lead]), draw(shape[lead:])
    if on_one_device():
        at_once = _LARGE // math.prod(shape[lead:])
        return jax.lax.map(each, keys.reshape(-1), batch_size=max(1, at_once)).reshape(shape)
    for _ in range(lead):  # a loop would gather what is sharded
        each = jax.vmap(each)
    return each(keys)


_PART, _LARGE = 2**8, 2**16


@final
class Saliency(AbstractCriterion):
    """`|w · g|`, the first-order change of the loss when the weight is removed; in float32 at least.

    ??? cite

        [Pruning Convolutional Neural Networks for Resource Efficient Transfer Learning](
        https://arxiv.org/abs/1611.06440), equation (7)
    """

    needs = ("grads",)

    def score(self, weight: Inexact[Array, "*shape"], *, grads: Inexact[Array, "*shape"]) -> Real[Array, "*shape"]:
        return jnp.abs(in_float32(weight) * in_float32(grads))


@final
class GradientMagnitude(AbstractCriterion):
    """`|g|`, the gradient with respect to the effective weight: what a removed weight would gain.

    ??? cite

        [Rigging the Lottery](https://arxiv.org/abs/1911.11134)
    """

    needs = ("grads",)

    def score(self, weight: Inexact[Array, "*shape"], *, grads: Inexact[Array, "*shape"]) -> Real[Array, "*shape"]:
        return jnp.abs(in_float32(grads))


@final
class Flow(AbstractCriterion):
    """`w · (H g)`: removing a weight of low worth raises the norm of the gradient. `grads` is `H g`.

    ??? cite

        [Picking Winning Tickets Before Training by Preserving Gradient Flow](https://arxiv.org/abs/2002.07376),
        equation (8), of the opposite sign: the paper removes the highest `-w · (H g)`
    """

    needs = ("grads",)

    def score(self, weight: Inexact[Array, "*shape"], *, grads: Inexact[Array, "*shape"]) -> Real[Array, "*shape"]:
        return in_float32(weight) * in_float32(grads)
