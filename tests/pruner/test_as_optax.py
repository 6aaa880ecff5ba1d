"""`as_optax`: the same masks as `step`, on parameters of any kind."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse

KEY = jax.random.key(0)
ADAM = optax.adam(0.02)
WINDOW = eqsparse.Periodic(2, 9, 3)
COMMON = {"distribution": 0.75, "schedule": WINDOW}
AT_ONCE = {"distribution": 0.75, "schedule": eqsparse.Periodic(0, 9, 3)}
NOISY = optax.chain(optax.stateless(lambda updates, params: jax.tree.map(lambda u: u + 0.1, updates)), optax.sgd(0.1))

PRUNERS = {
    "magnitude": lambda **k: eqsparse.MagnitudePruning(ADAM, **COMMON, **k),
    "saliency": lambda **k: eqsparse.SaliencyPruning(ADAM, **COMMON, **k),
    "random": lambda **k: eqsparse.RandomPruning(ADAM, **COMMON, key=KEY, **k),
    "global": lambda **k: eqsparse.GlobalMagnitudePruning(ADAM, **COMMON, **k),
    "fisher": lambda **k: eqsparse.FisherPruning(ADAM, **COMMON, **k),
    "movement": lambda **k: eqsparse.MovementPruning(ADAM, **COMMON, **k),
    "ste": lambda **k: eqsparse.MagnitudeSTE(ADAM, distribution=0.75, **k),
    "sr-ste": lambda **k: eqsparse.SRSTE(ADAM, distribution=0.75, **k),
    "static": lambda **k: eqsparse.StaticSparse(ADAM, distribution=0.75, key=KEY, **k),
    "set": lambda **k: eqsparse.SET(ADAM, **COMMON, key=KEY, **k),
    "rigl": lambda **k: eqsparse.RigL(ADAM, **COMMON, key=KEY, **k),
    "random ste": lambda **k: eqsparse.RandomSTE(ADAM, distribution=0.75, key=KEY, **k),
    "saliency ste": lambda **k: eqsparse.StraightThrough(ADAM, criterion=eqsparse.Saliency(), **COMMON, **k),
    "snfs": lambda **k: eqsparse.SNFS(ADAM, **COMMON, key=KEY, **k),
    "fisher, random": lambda **k: eqsparse.DynamicSparse(
        ADAM, drop=eqsparse.Fisher(), grow=eqsparse.Random(), order=eqsparse.After(), **COMMON, key=KEY, **k
    ),
    "top-kast": lambda **k: eqsparse.TopKAST(ADAM, **COMMON, backward_sparsity=0.5, **k),
    "ac/dc": lambda **k: eqsparse.ACDC(ADAM, distribution=0.75, schedule=eqsparse.Alternating(1, 9, 2, 2), **k),
    "lottery": lambda **k: eqsparse.LotteryTicket(ADAM, distribution=0.75, rounds=2, steps=4, **k),
    "rigl, at once": lambda **k: eqsparse.RigL(ADAM, **AT_ONCE, key=KEY, **k),
    "set, at once": lambda **k: eqsparse.SET(ADAM, **AT_ONCE, key=KEY, **k),
    "set, behind masks": lambda **k: eqsparse.SET(NOISY, **COMMON, key=KEY, **k),
}
DENSE = ("ste", "sr-ste", "random ste", "saliency ste")
# Where no one structure is meant, one that is found without loops, in half the time to compile; `Global` has none, and
# those that drop and grow would hardly move in its runs.
FREE = ("global", "set", "rigl", "snfs", "fisher, random", "rigl, at once", "set, at once", "set, behind masks")
RUNS = {name: {} if name in FREE else {"structure": eqsparse.NM(2, 8)} for name in PRUNERS}
ZERO_WHERE_MASKED = [name for name in PRUNERS if name not in (*DENSE, "top-kast")]


def layers():
    return [eqx.nn.Linear(8, 12, key=KEY), eqx.nn.Linear(12, 4, key=jax.random.key(1))]


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tree)


@pytest.mark.parametrize("name", PRUNERS)
def test_the_masks_of_step(name):
    """On the parameters of the same model: equal masks at every step, equal weights but for rounding."""
    pruner = PRUNERS[name](**RUNS[name])
    plain = layers() if name == "global" else layers()[:1]  # half as much to compile
    model, state = pruner.init(plain)
    tx = pruner.as_optax()
    params = eqx.filter(plain, eqx.is_inexact_array)
    carried = tx.init(params)
    update = jax.jit(tx.update)
    for t in range(11):
        grads = random_like(params, t)
        into = eqx.filter(model, eqx.is_inexact_array)
        leaves = [x for layer in grads for x in (layer.weight, layer.bias)]
        into = eqx.tree_at(lambda m: [x for layer in m for x in (layer.layer.weight, layer.layer.bias)], into, leaves)
        model, state = pruner.step(model, into, state)
        updates, carried = update(grads, carried, params)
        params = optax.apply_updates(params, updates)
        masks = eqsparse.get_masks(model)
        for i, (path, mask) in enumerate(masks.items()):
            np.testing.assert_array_equal(carried.masks[path].dense(), mask, err_msg=f"{t} {path}")
            np.testing.assert_allclose(params[i].weight, model[i].layer.weight, rtol=0, atol=1e-6)
            np.testing.assert_allclose(params[i].bias, model[i].layer.bias, rtol=0, atol=1e-6)
            if name in ZERO_WHERE_MASKED:
                assert not np.asarray(params[i].weight)[~np.asarray(mask)].any()
    assert 4 * sum(int(m.sum()) for m in masks.values()) == sum(m.size for m in masks.values())


class Net(nn.Module):
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for size in self.hidden:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(3)(x)


@pytest.mark.parametrize("packed, hidden", [(False, (16,)), (True, ())])
@pytest.mark.parametrize("name", ["magnitude", "ste", "set", "rigl"])
def test_a_flax_loop(name, packed, hidden):
    """Two lines change: the transformation, and (straight-through) the parameters that the model runs on. Donated,
    jitted, resumed from leaves."""
    x = jax.random.normal(KEY, (32, 8))
    y = jnp.argmax(x[:, :3], axis=1)
    net = Net(hidden)
    pruner = PRUNERS[name](packed=packed)
    tx = pruner.as_optax()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = net.init(KEY, x)
        state = tx.init(params)

        def loss(params, state):
            logits = net.apply(pruner.forward_params(params, state), x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        traced = []

        @jax.jit
        def step(params, state):
            traced.append(1)
            updates, state = tx.update(jax.grad(loss)(params, state), state, params)
            return optax.apply_updates(params, updates), state

        step = jax.jit(step, donate_argnums=(0, 1))
        first = float(loss(params, state))
        for _ in range(10):
            params, state = step(params, state)
        # Resumed: another process would have the leaves and the structure.
        state = jax.tree.unflatten(
            jax.tree.structure(state),
            [
                jnp.array(np.asarray(x)) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
                for x in jax.tree.leaves(state)
            ],
        )
        for _ in range(10):
            params, state = step(params, state)
        assert float(loss(params, state)) < first
    assert len(traced) == 1
    for layer in [f"Dense_{i}" for i in range(1 + len(hidden))]:
        kernel = np.asarray(params["params"][layer]["kernel"])
        mask = np.asarray(state.masks[f"params.{layer}.kernel"].dense())
        assert mask.sum() == kernel.size // 4
        assert (name == "ste") == bool(kernel[~mask].any())
        run = pruner.forward_params(params, state)["params"][layer]
        np.testing.assert_array_equal(run["kernel"], np.where(mask, kernel, 0))
        np.testing.assert_array_equal(run["bias"], params["params"][layer]["bias"])


def test_a_haiku_like_dict():
    """PREDECESSOR row 16: a tree with a leaf that is not pruned (a bias)."""
    params = {"linear": {"w": jnp.arange(24.0).reshape(4, 6) - 11, "b": jnp.ones(6)}, "step": jnp.zeros((), jnp.int32)}
    pruner = eqsparse.SET(
        optax.chain(optax.clip(1.0), optax.lion(0.01)), distribution=0.5, schedule=eqsparse.Periodic(0, 5, 1), key=KEY,
        where="linear.*",
    )  # fmt: skip
    tx = pruner.as_optax()
    floats = {"linear": params["linear"]}
    state = tx.init(floats)
    assert list(state.masks) == ["linear.w"]
    for t in range(6):
        updates, state = jax.jit(tx.update)(random_like(floats, t), state, floats)
        floats = optax.apply_updates(floats, updates)
        assert np.count_nonzero(floats["linear"]["w"]) <= 12
        assert state.masks["linear.w"].nnz() == 12
    assert (np.asarray(floats["linear"]["b"]) != 1).all()


def test_within_multi_steps_and_extra_arguments():
    """PREDECESSOR row 19: optimisers whose update takes extra arguments (`value=`) crash."""
    params = {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}
    optim = optax.MultiSteps(optax.chain(optax.polyak_sgd(), optax.trace(0.9)), 2)
    tx = eqsparse.MagnitudePruning(optim, distribution=0.5, schedule=eqsparse.OneShot(1)).as_optax()
    state = tx.init(params)
    for t in range(4):
        updates, state = tx.update(random_like(params, t), state, params, value=jnp.float32(1.0))
        params = optax.apply_updates(params, updates)
    assert np.count_nonzero(params["w"]) == 8


def test_bfloat16_lands_exactly():
    params = {"w": jax.random.normal(KEY, (16, 16), jnp.bfloat16)}
    tx = eqsparse.MagnitudePruning(optax.sgd(0.1), distribution=0.5, schedule=eqsparse.OneShot(0)).as_optax()
    updates, state = tx.update({"w": jnp.ones((16, 16), jnp.bfloat16)}, tx.init(params), params)
    new = np.asarray(optax.apply_updates(params, updates)["w"], np.float32)
    mask = np.asarray(state.masks["w"].dense())
    assert (new[~mask] == 0).all() and mask.sum() == 128


def test_what_goes_wrong():
    pruner = eqsparse.MagnitudePruning(distribution=0.5)
    with pytest.raises(ValueError, match=r"`MagnitudePruning\(optim=...\)` must be given for `as_optax`"):
        pruner.as_optax()
    params = {"w": jnp.ones((4, 4))}
    tx = PRUNERS["magnitude"]().as_optax()
    state = tx.init(params)
    with pytest.raises(ValueError, match="`params` must be given"):
        tx.update(params, state)
    with pytest.raises(ValueError, match=r"`state` must be that of `params`. At `w`"):
        tx.update({"w": jnp.ones((4, 5))}, state, {"w": jnp.ones((4, 5))})
    with pytest.raises(ValueError, match=r"`updates` must have .* of `params`.* At `w` `params` has shape \(4, 4\)"):
        tx.update({"w": jnp.ones((4, 5))}, state, params)
    alone = tx.init(params["w"])
    with pytest.raises(ValueError, match=r"As a single array `params` has shape \(4, 4\)"):
        tx.update(jnp.ones((4, 5)), alone, params["w"])
    with pytest.raises(ValueError, match=r"`forward_params\(state=...\)` must hold the state of one"):
        pruner.forward_params(params, optax.EmptyState())
    other = r"must be the parameters that the state is of: \(4, 4\) at ``. Got \(4, 5\)"
    with pytest.raises(ValueError, match=other):
        pruner.forward_params(jnp.ones((4, 5)), alone)
    # In a chain the state is found as well.
    chained = optax.chain(optax.clip(1.0), tx).init(params)
    assert np.count_nonzero(pruner.forward_params(params, chained)["w"]) == 16


@pytest.mark.parametrize("name", ["magnitude", "static", "lottery"])
def test_gradients_narrower_than_the_parameters(name):
    """What takes a weight to zero must hold it."""
    params = {dtype: jax.random.normal(KEY, (6, 16)) for dtype in ("bfloat16", "float16")}
    tx = PRUNERS[name](**RUNS[name]).as_optax()
    state = tx.init(params)
    for t in range(10):
        grads = {dtype: random_like(x, t).astype(dtype) for dtype, x in params.items()}
        updates, state = tx.update(grads, state, params)
        with jax.numpy_dtype_promotion("standard"):
            params = optax.apply_updates(params, updates)
        for dtype, x in params.items():
            assert not np.asarray(x)[~np.asarray(state.masks[dtype].dense())].any()
    assert [int(mask.nnz()) for mask in state.masks.values()] == [24, 24]


def test_pruned_at_initialisation():
    """The zeros that `prune` leaves are the masks."""
    params = {"w": jax.random.normal(KEY, (4, 6))}
    pruner = eqsparse.SNIP(optax.sgd(0.1), distribution=0.5)
    pruned = pruner.prune(params, loss=lambda p, _: (p["w"] ** 2).sum(), data=None)
    tx = pruner.as_optax()
    state = tx.init(pruned)
    updates, state = tx.update({"w": jnp.ones((4, 6))}, state, pruned)
    after = optax.apply_updates(pruned, updates)
    np.testing.assert_array_equal(np.asarray(after["w"]) == 0, np.asarray(pruned["w"]) == 0)
    assert np.count_nonzero(after["w"]) == 12


def test_states_and_parameters_of_others():
    params = {"w": jnp.ones((4, 4))}
    pruner = PRUNERS["magnitude"]()
    tx = pruner.as_optax()
    with pytest.raises(ValueError, match=r"`state` must come from `init` or the last `update`. Got tuple"):
        tx.update(params, optax.sgd(0.1).init(params), params)
    with pytest.raises(ValueError, match=r"`forward_params\(params=...\)` must be the parameters .* \['w'\]"):
        pruner.forward_params({"z": jnp.ones((4, 4))}, tx.init(params))
