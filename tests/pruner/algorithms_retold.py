"""The algorithms of the pruner room, each told again from its paper in plain NumPy.

Each is a generator of (weights, masks) after each step, for a list of weights and fixed gradients by step; `keep` is
how many weights of each stay. Optimisers are those of `gradual_retold`: `(update, fresh)`.
"""

import math

import numpy as np
from gradual_retold import top


def largest(weights, keep):
    return [top(np.abs(w), k) for w, k in zip(weights, keep, strict=True)]


def straight_through(weights, gradients, keep, optimiser, decay=0.0):
    """Bengio 2013, Zhou 2021: all weights train on the gradient of the masked ones, masked ones decay."""
    update, fresh = optimiser
    state, masks = [fresh(w) for w in weights], largest(weights, keep)
    for step, grads in enumerate(gradients):
        for i, (w, g, m) in enumerate(zip(weights, grads, masks, strict=True)):
            refined = g + np.float32(decay) * np.where(m, 0, w)
            weights[i], state[i] = update(w, refined, state[i], step + 1)
        masks = largest(weights, keep)
        yield list(weights), list(masks), None


def random_straight_through(weights, gradients, keep, optimiser, lots):
    """All weights train on the gradient of those that a draw leaves, another draw after each step."""
    update, fresh = optimiser
    state = [fresh(w) for w in weights]
    for step, grads in enumerate(gradients):
        for i, (w, g) in enumerate(zip(weights, grads, strict=True)):
            weights[i], state[i] = update(w, g, state[i], step + 1)
        yield list(weights), [top(x, k) for x, k in zip(lots(step), keep, strict=True)], None


def static(weights, gradients, masks, optimiser):
    """Masks stay."""
    update, fresh = optimiser
    weights = [np.where(m, w, 0) for w, m in zip(weights, masks, strict=True)]
    state = [fresh(w) for w in weights]
    for step, grads in enumerate(gradients):
        for i, (g, m) in enumerate(zip(grads, masks, strict=True)):
            weights[i], state[i] = update(weights[i], np.where(m, g, 0), state[i], step + 1)
        yield list(weights), list(masks), list(state)


def cosine(fraction, step, stop):
    """Evci 2020, section 3: α/2 (1 + cos(π t / T_end))."""
    return fraction / 2 * (1 + math.cos(math.pi * min(step / max(stop, 1), 1)))


def drop_and_grow(weight, mask, gain, fraction):
    """The smallest of the weights there go; of all others those of the largest gain come, as many; NaN never."""
    there = int(mask.sum())
    stay = top(np.where(mask, np.abs(weight), -np.inf), there - math.floor(there * fraction + 0.5)) & mask
    candidates = np.where(stay, np.inf, np.where(np.isnan(gain), np.where(mask, -1, -2), gain))
    return top(candidates, there)


def rigl(weights, gradients, masks, optimiser, fraction, start, stop, every):
    """Evci 2020, algorithm 1: an update of the masks replaces the step; a weight that has grown starts at zero."""
    update, fresh = optimiser
    weights = [np.where(m, w, 0) for w, m in zip(weights, masks, strict=True)]
    state, count = [fresh(w) for w in weights], 0
    for step, grads in enumerate(gradients):
        due = start <= step <= stop and ((step - start) % every == 0 or step == stop)
        count += not due
        for i, (g, m) in enumerate(zip(grads, masks, strict=True)):
            if due:
                new = drop_and_grow(weights[i], m, np.abs(g), cosine(fraction, step, stop))
                weights[i] = np.where(new & m, weights[i], 0)
                state[i] = tuple(np.where(new & m, s, 0) for s in state[i])
                masks = [*masks[:i], new, *masks[i + 1 :]]
            else:
                weights[i], state[i] = update(weights[i], np.where(m, g, 0), state[i], count)
        yield list(weights), list(masks), list(state)


def evolve(weights, gradients, masks, optimiser, fraction, start, stop, every, lots):
    """Mocanu 2018, algorithm 1: the step, then the smallest go and others, drawn by lot, come."""
    update, fresh = optimiser
    weights = [np.where(m, w, 0) for w, m in zip(weights, masks, strict=True)]
    state = [fresh(w) for w in weights]
    for step, grads in enumerate(gradients):
        due = start <= step <= stop and ((step - start) % every == 0 or step == stop)
        for i, (g, m) in enumerate(zip(grads, masks, strict=True)):
            weights[i], state[i] = update(weights[i], np.where(m, g, 0), state[i], step + 1)
            if due:
                new = drop_and_grow(weights[i], m, lots(step)[i].astype(np.float64), cosine(fraction, step, stop))
                weights[i] = np.where(new & m, weights[i], 0)
                state[i] = tuple(np.where(new & m, s, 0) for s in state[i])
                masks = [*masks[:i], new, *masks[i + 1 :]]
        yield list(weights), list(masks), list(state)


def sparse_momentum(weights, gradients, masks, optimiser, fraction, start, stop, every, momentum):
    """Dettmers 2019: as many come as go, by the momentum of the gradient; then the step."""
    update, fresh = optimiser
    weights = [np.where(m, w, 0) for w, m in zip(weights, masks, strict=True)]
    state, mean = [fresh(w) for w in weights], [np.zeros_like(w) for w in weights]
    for step, grads in enumerate(gradients):
        due = start <= step <= stop and ((step - start) % every == 0 or step == stop)
        for i, (g, m) in enumerate(zip(grads, masks, strict=True)):
            mean[i] = np.float32(momentum) * mean[i] + np.float32(1 - momentum) * g
            if due:
                new = drop_and_grow(weights[i], m, np.abs(mean[i]), cosine(fraction, step, stop))
                weights[i] = np.where(new & m, weights[i], 0)
                state[i] = tuple(np.where(new & m, s, 0) for s in state[i])
                masks, m = [*masks[:i], new, *masks[i + 1 :]], new
            weights[i], state[i] = update(weights[i], np.where(m, g, 0), state[i], step + 1)
        yield list(weights), list(masks), list(state)


def top_kast(weights, gradients, keep, train, optimiser, decay, start, stop, every):
    """Jayakumar 2020: the model runs on the top D, the top D + M train; loss of exploration λ/2 (|A|² + |B - A|² / D)."""
    update, fresh = optimiser
    masks, wide = largest(weights, keep), largest(weights, train)
    state = [fresh(w) for w in weights]
    for step, grads in enumerate(gradients):
        if start <= step <= stop and ((step - start) % every == 0 or step == stop):
            masks, old = largest(weights, keep), wide
            wide = largest(weights, train)
            state = [tuple(np.where(b & o, x, 0) for x in s) for s, b, o in zip(state, wide, old, strict=True)]
        for i, (w, g, a, b) in enumerate(zip(weights, grads, masks, wide, strict=True)):
            rate = np.where(a, decay, decay / (keep[i] / w.size)).astype(np.float32)
            stepped, state[i] = update(w, np.where(b, g + rate * w, 0), state[i], step + 1)
            weights[i] = np.where(b, stepped, w)
        yield list(weights), list(masks), list(state)


def alternate(weights, gradients, keep, optimiser, start, stop, dense_steps, sparse_steps, reset):
    """Peste 2021, algorithm 1: the top k are kept at the end of a dense phase, all train again after a sparse one."""
    update, fresh = optimiser
    masks, state = [np.ones(w.shape, bool) for w in weights], [fresh(w) for w in weights]
    phase = "dense"
    for step, grads in enumerate(gradients):
        into = (step - start) % (dense_steps + sparse_steps)
        now = "sparse" if step >= stop or (step >= start and into < sparse_steps) else "dense"
        if now != phase or step == stop:
            old = masks
            masks = largest(weights, keep) if now == "sparse" else [np.ones(w.shape, bool) for w in weights]
            weights = [np.where(m, w, 0) for w, m in zip(weights, masks, strict=True)]
            fade = lambda s, m, o: tuple(np.where(m & o, x, 0) for x in s)
            state = [
                fresh(w) if reset else fade(s, m, o) for w, s, m, o in zip(weights, state, masks, old, strict=True)
            ]
            phase = now
        for i, (g, m) in enumerate(zip(grads, masks, strict=True)):
            weights[i], state[i] = update(weights[i], np.where(m, g, 0), state[i], step + 1)
        yield list(weights), list(masks), list(state)


def lottery(weights, gradients, target, optimiser, rounds, steps, rewind):
    """Frankle 2019, 2020: train, remove the smallest, take the rest back to what it was at step `rewind`; repeat."""
    update, fresh = optimiser
    masks, state = [np.ones(w.shape, bool) for w in weights], [fresh(w) for w in weights]
    count = 0
    for step, grads in enumerate(gradients):
        if step == rewind:
            saved = list(weights)
        r, over = divmod(step, steps)
        if over == 0 and 1 <= r <= rounds:
            keep = [math.floor(w.size * (1 - target) ** (r / rounds) + 0.5) for w in weights]
            ranked = [np.where(m, np.abs(w), -1) for w, m in zip(weights, masks, strict=True)]
            masks = [top(s, k) for s, k in zip(ranked, keep, strict=True)]
            weights = [np.where(m, w, 0) for w, m in zip(saved, masks, strict=True)]
            state = [fresh(w) for w in weights]
        else:
            count += 1
            for i, (g, m) in enumerate(zip(grads, masks, strict=True)):
                weights[i], state[i] = update(weights[i], np.where(m, g, 0), state[i], count)
        yield list(weights), list(masks), list(state)


def by_memory(weights, gradients, kept_at, optimiser, remember, score, start, stop, every, comes_back):
    """Gradual pruning by what is gathered over the steps: Sanh 2020 (movement), Theis 2018 (Fisher)."""
    update, fresh = optimiser
    masks, state = [np.ones(w.shape, bool) for w in weights], [fresh(w) for w in weights]
    memory = [np.zeros_like(w) for w in weights]
    for step, grads in enumerate(gradients):
        memory = [remember(s, w, g) for s, w, g in zip(memory, weights, grads, strict=True)]
        if start <= step <= stop and ((step - start) % every == 0 or step == stop):
            for i, (w, m, s) in enumerate(zip(weights, masks, memory, strict=True)):
                worth = score(w, s, state[i])
                new = top(worth if comes_back else np.where(m, worth, -np.inf), kept_at(w.size, step))
                weights[i] = np.where(new & m, w, 0)
                state[i] = tuple(np.where(new & m, x, 0) for x in state[i])
                masks = [*masks[:i], new, *masks[i + 1 :]]
        for i, (g, m) in enumerate(zip(grads, masks, strict=True)):
            weights[i], state[i] = update(weights[i], np.where(m, g, 0), state[i], step + 1)
        yield list(weights), list(masks), list(state)
