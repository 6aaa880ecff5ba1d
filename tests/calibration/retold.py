"""The solvers told again in NumPy, in float64, one input after the other."""

import numpy as np


def damped(gram, damping):
    return np.asarray(gram, np.float64) + damping * np.mean(np.diag(gram)) * np.eye(len(gram))


def remove(inverse, j):
    """The inverse of a Hessian without the input j: one step of Gaussian elimination."""
    return inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]


def surgery(w, gram, choose, damping=0.01):
    """Optimal brain surgery on all rows of `w`, (outputs, inputs): at each input those weights go that `choose` doesn't
    keep, and all inputs after make up for them.

    `choose(j, w, costs)` is asked before the input j for masks of it and inputs after: a dict of input → mask. `costs(i)`
    is what removing each weight of the input i costs once all inputs before are settled.
    """
    w, inverse = np.array(w, np.float64), np.linalg.inv(damped(gram, damping))
    mask = np.zeros(w.shape, bool)
    for j in range(w.shape[1]):

        def costs(i, j=j):
            left = inverse
            for before in range(j, i):
                left = remove(left, before)
            return w[:, i] ** 2 / left[i, i]

        for i, kept in choose(j, w, costs).items():
            mask[:, i] = kept
        error = np.where(mask[:, j], 0, w[:, j] / inverse[j, j])
        w = w - np.outer(error, inverse[j])
        w[~mask[:, j], j] = 0
        inverse = remove(inverse, j)
    return w, mask


def best(costs, k):
    """The `k` largest of an array, the lower index of equal ones."""
    mask = np.zeros(costs.size, bool)
    mask[np.argsort(-costs.ravel(), kind="stable")[:k]] = True
    return mask.reshape(costs.shape)


def by_blocks(rows, inputs, size, density, per_row=False):
    """Masks for a block of inputs at a time."""
    upto = lambda c: int(np.floor(rows * min(c, inputs) * density + 0.5))

    def choose(j, w, costs):
        if j % size:
            return {}
        block = range(j, min(j + size, inputs))
        cost = np.stack([costs(i) for i in block], axis=1)
        if per_row:
            of_row = lambda total, r: total // rows + (r < total % rows)
            kept = np.stack([best(cost[r], of_row(upto(j + size), r) - of_row(upto(j), r)) for r in range(rows)])
        else:
            kept = best(cost, upto(j + size) - upto(j))
        return {i: kept[:, c] for c, i in enumerate(block)}

    return choose


def by_runs(n, m):
    """n of each m inputs."""

    def choose(j, w, costs):
        if j % m:
            return {}
        cost = np.stack([costs(j + i) for i in range(m)], axis=1)
        return {j + i: kept for i, kept in enumerate(np.stack([best(row, n) for row in cost]).T)}

    return choose


def error(w, dense, gram):
    """The squared error of the outputs."""
    change = np.asarray(w, np.float64) - np.asarray(dense, np.float64)
    return float(np.einsum("oi,ij,oj", change, np.asarray(gram, np.float64), change))
