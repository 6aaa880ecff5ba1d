"""Criteria that need nothing but weights, gradients and keys."""

from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Key, Real, UInt32

from .._selection import in_float32
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

    def score(self, weight: Inexact[Array, "*shape"], *, key: Key[Array, ""]) -> UInt32[Array, "*shape"]:
        return jax.random.bits(key, weight.shape, jnp.uint32)


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
