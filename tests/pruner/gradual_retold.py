"""Gradual pruning with its optimisers, told again in plain NumPy."""

import math
from fractions import Fraction

import numpy as np


def counted(n, density):
    """The nearest whole number to `n * density`, halves up; sparsities are multiples of 1e-7."""
    exact = n * (1 - Fraction(round(float(1 - density) * 10**7), 10**7))
    return math.floor(exact + Fraction(1, 2))


def top(scores, k):
    """The `k` largest, ties to the lower flat index."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.astype(np.float64).ravel(), kind="stable")[:k]] = True
    return mask.reshape(scores.shape)


def unstructured(scores, density):
    return top(scores, max(1, counted(scores.size, density)))


def rows(scores, density):
    """The same share in each row, the first ones taking what is left over."""
    each, over = divmod(counted(scores.size, density), len(scores))
    return np.stack([top(row, each + (i < over)) for i, row in enumerate(scores)])


def two_of_four(scores, density):
    keep = max(2, math.ceil(4 * density - 1e-6))
    runs = scores.reshape(-1, 4)
    return np.stack([top(run, keep) for run in runs]).reshape(scores.shape)


def tiles(scores):
    a, b = scores.shape
    return scores.reshape(a // 4, 4, b // 4, 4).mean((1, 3))


def blocks(scores, density):
    pooled = tiles(scores)
    return np.kron(top(pooled, max(1, counted(pooled.size, density))), np.ones((4, 4), bool))


def channels(scores, density):
    kept = top(scores.mean(1), max(1, counted(len(scores), density)))
    return np.broadcast_to(kept[:, None], scores.shape)


def uniform(keep, target):
    """Each site on its own, to the same target; `share` is how far the schedule has come."""
    return lambda scores, share: [keep(s, 1 - target * share) for s in scores]


def erk(keep, target):
    """Densities in proportion to (out + in) / (out · in), full layers taken out until none overflows."""

    def choose(scores, share):
        size = np.array([s.size for s in scores], float)
        raw = np.array([sum(s.shape) / s.size for s in scores])
        full = np.zeros(len(scores), bool)
        while True:
            epsilon = ((1 - target) * size.sum() - size[full].sum()) / (size * raw)[~full].sum()
            density = np.where(full, 1.0, epsilon * raw)
            if not (density > 1).any():
                break
            full |= density > 1
        return [keep(s, 1 - (1 - d) * share) for s, d in zip(scores, density, strict=True)]

    return choose


def everywhere(target, normalise, pool=lambda s: s, spread=lambda m: m):
    """All sites in one competition, scores over the layer's norm if asked; each keeps one at least (not needed)."""

    def choose(scores, share):
        pooled = [pool(s / np.sqrt((np.maximum(s, 0) ** 2).sum()) if normalise else s) for s in scores]
        group = scores[0].size // pooled[0].size
        k = math.floor(Fraction(counted(sum(s.size for s in scores), 1 - target * share), group) + Fraction(1, 2))
        mask = top(np.concatenate([p.ravel() for p in pooled]), k)
        parts = np.split(mask, np.cumsum([p.size for p in pooled])[:-1])
        assert all(part.any() for part in parts)
        return [spread(m.reshape(p.shape)) for m, p in zip(parts, pooled, strict=True)]

    return choose


def sgd(rate):
    def update(w, g, state, step):
        return w - np.float32(rate) * g, state

    return update, lambda w: ()


def adam(rate, b1=0.9, b2=0.999, eps=1e-8):
    def update(w, g, state, step):
        m, v = state[0] * b1 + g * (1 - b1), state[1] * b2 + g * g * (1 - b2)
        # In float32, as an optimiser's own arithmetic is: 1 - 0.999 has but four digits there.
        first, second = (np.float32(1) - np.float32(b) ** np.float32(step) for b in (b1, b2))
        return w - rate * (m / first) / (np.sqrt(v / second) + eps), (m, v)

    return update, lambda w: (np.zeros_like(w), np.zeros_like(w))


def train(weights, gradients, choose, optimiser, start, stop, every, score=lambda w, g: np.abs(w)):
    """Yields weights, masks and optimiser state after each step; `gradients` gives those of all weights by step."""
    update, fresh = optimiser
    masks, state = [np.ones(w.shape, bool) for w in weights], [fresh(w) for w in weights]
    for step, grads in enumerate(gradients):
        if start <= step <= stop and ((step - start) % every == 0 or step == stop):
            share = 1 - (1 - (step - start) / (stop - start)) ** 3
            scores = [np.where(m, score(w, g), -1) for w, g, m in zip(weights, grads, masks, strict=True)]
            masks = [new & old for new, old in zip(choose(scores, share), masks, strict=True)]
        for i, (g, m) in enumerate(zip(grads, masks, strict=True)):
            state[i] = tuple(np.where(m, s, 0) for s in state[i])
            weights[i], state[i] = update(np.where(m, weights[i], 0), np.where(m, g, 0), state[i], step + 1)
            weights[i] = np.where(m, weights[i], 0)
        yield list(weights), list(masks), list(state)
