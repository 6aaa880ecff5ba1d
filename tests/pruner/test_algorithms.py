"""What every algorithm promises: exact counts, structures kept, one trace; packed, in bfloat16, stacked."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqsparse

KEY = jax.random.key(0)
WINDOW = eqsparse.Periodic(1, 9, 2)
STRUCTURES = {"stack.*": eqsparse.NM(2, 4), "head.*": eqsparse.Block((4, 4)), "tail.*": eqsparse.FixedFanIn()}
COMMON = {"distribution": 0.5, "structure": STRUCTURES, "packed": True}
DYNAMIC = {**COMMON, "schedule": WINDOW, "key": KEY, "drop_fraction": optax.constant_schedule(0.4)}

ALGORITHMS = {
    "magnitude": lambda o: eqsparse.MagnitudePruning(o, **COMMON, schedule=WINDOW),
    "random": lambda o: eqsparse.RandomPruning(o, **COMMON, schedule=WINDOW, key=KEY),
    "saliency": lambda o: eqsparse.SaliencyPruning(o, **COMMON, schedule=WINDOW),
    "worth of a gradient": lambda o: eqsparse.GradualPruning(
        o, criterion=eqsparse.GradientMagnitude(), **COMMON, schedule=WINDOW
    ),
    "fisher": lambda o: eqsparse.FisherPruning(o, **COMMON, schedule=WINDOW),
    "movement": lambda o: eqsparse.MovementPruning(o, **COMMON, schedule=WINDOW),
    "no pruning": lambda o: eqsparse.NoPruning(o, packed=True),
    "magnitude ste": lambda o: eqsparse.MagnitudeSTE(o, **COMMON),
    "random ste": lambda o: eqsparse.RandomSTE(o, **COMMON, key=KEY),
    "sr-ste": lambda o: eqsparse.SRSTE(o, **COMMON),
    "saliency ste": lambda o: eqsparse.StraightThrough(o, criterion=eqsparse.Saliency(), **COMMON),
    "static": lambda o: eqsparse.StaticSparse(o, **COMMON, key=KEY),
    "set": lambda o: eqsparse.SET(o, **DYNAMIC),
    "rigl": lambda o: eqsparse.RigL(o, **DYNAMIC),
    "snfs": lambda o: eqsparse.SNFS(o, **DYNAMIC),
    "fisher, random": lambda o: eqsparse.DynamicSparse(o, drop=eqsparse.Fisher(), grow=eqsparse.Random(), **DYNAMIC),
    "top-kast": lambda o: eqsparse.TopKAST(o, **COMMON, backward_sparsity=0.25, schedule=WINDOW),
    "ac/dc": lambda o: eqsparse.ACDC(o, **COMMON, schedule=eqsparse.Alternating(1, 9, 2, 2)),
    "lottery": lambda o: eqsparse.LotteryTicket(o, **COMMON, rounds=2, steps=4),
    "snip": lambda o: eqsparse.SNIP(o, distribution=eqsparse.Uniform(0.5), structure=STRUCTURES, packed=True),
}
FROM_THE_START = (
    "magnitude ste", "random ste", "sr-ste", "static", "set", "rigl", "snfs", "fisher, random", "top-kast",
)  # fmt: skip
MOVING = ("set", "rigl", "snfs", "fisher, random", "magnitude ste", "random ste", "sr-ste", "saliency ste", "top-kast")
CUTS = (1, 4, 8)  # before a step with an update, and before ones without
NEVER = ("no pruning", "snip")
DENSE_WEIGHTS = ("magnitude ste", "random ste", "sr-ste", "saliency ste", "top-kast")


def model_of():
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(8, 8, dtype=jnp.bfloat16, key=key))(jax.random.split(KEY, 3))
    head, tail = (eqx.nn.Linear(8, 8, key=jax.random.key(i)) for i in (1, 2))
    return {"stack": stack, "head": head, "tail": tail}


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), eqx.filter(tree, eqx.is_inexact_array)
    )


def masks_of(model):
    return {path: np.asarray(mask) for path, mask in eqsparse.get_masks(model).items()}


def in_structure(masks):
    runs = masks["stack.weight"].reshape(3, 8, 2, 4).sum(-1)
    tiles = masks["head.weight"].reshape(2, 4, 2, 4).sum((1, 3))
    return (runs == 2).all() and sorted(tiles.ravel()) == [0, 0, 16, 16] and (masks["tail.weight"].sum(1) == 4).all()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_packed_stacked_in_structures_and_bfloat16(name, tmp_path):
    """PREDECESSOR rows 7, 10, 16 and 17: N:M and block masks of RigL and SET that never move or drift; crashes on
    packed masks, on biases and on optimisers other than SGD and Adam. A run that was cut goes on bit for bit."""
    traced = []
    plain = optax.chain(optax.clip_by_global_norm(10.0), optax.rmsprop(0.01, momentum=0.9))

    def update(grads, state, params=None, **extra):
        traced.append(1)
        return plain.update(grads, state, params)

    pruner = ALGORITHMS[name](optax.GradientTransformationExtraArgs(plain.init, update))
    model, state = pruner.init(model_of())
    full = {path: mask.all() for path, mask in masks_of(model).items()}
    assert in_structure(masks_of(model)) if name in FROM_THE_START else all(full.values())
    moved = dict.fromkeys(full, False)
    for t in range(11):
        if t in CUTS:
            eqsparse.save(tmp_path / str(t), (pruner, model, state))
        before = masks_of(model)
        model, state = pruner.step(model, random_like(model, t), state)
        now = masks_of(model)
        for path in now:
            moved[path] |= (now[path] & ~before[path]).any()
        if name in FROM_THE_START:
            assert in_structure(now)
        for path, layer in model.items():
            assert layer.masks["weight"].packed and layer.weight.dtype == (
                jnp.bfloat16 if path == "stack" else jnp.float32
            )
            if name not in DENSE_WEIGHTS:
                assert not np.asarray(layer.weight, np.float32)[~now[f"{path}.weight"]].any()
    assert in_structure(now) == (name not in NEVER)
    assert all(moved.values()) if name in MOVING else True
    like = (pruner, *eqx.filter_eval_shape(pruner.init, model_of()))
    for cut in CUTS:
        _, again, its_state = eqsparse.load(tmp_path / str(cut), like)
        for t in range(cut, 11):
            again, its_state = pruner.step(again, random_like(again, t), its_state)
        assert eqx.tree_equal((again, its_state), (model, state))
    assert len(traced) == 1


TOGETHER = {
    "global magnitude": (eqsparse.GlobalMagnitudePruning, {"schedule": WINDOW}),
    "global saliency": (eqsparse.GlobalSaliencyPruning, {"schedule": WINDOW}),
    "lamp": (eqsparse.MagnitudePruning, {"schedule": WINDOW, "distribution": eqsparse.LAMP(0.5)}),
    "snip": (eqsparse.SNIP, {}),
    "grasp": (eqsparse.GraSP, {}),
    "synflow": (eqsparse.SynFlow, {"rounds": 3}),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_all_sites_together_packed_stacked_in_blocks_and_bfloat16(name):
    """Half of all weights, of which `head` keeps whole blocks; one trace."""
    make, more = TOGETHER[name]
    settings = {"distribution": 0.5, "structure": {"head.*": eqsparse.Block((4, 4))}, "packed": True} | more
    pruner = make(optax.adam(0.01), **settings)
    model, x = model_of(), jax.random.normal(KEY, (5, 8))

    def forward(model, x):
        through = lambda h, layer: (jnp.tanh(jax.vmap(layer)(h)), None)
        x, _ = jax.lax.scan(through, x.astype(jnp.bfloat16), model["stack"])
        return jax.vmap(model["tail"])(jax.nn.relu(jax.vmap(model["head"])(x.astype(jnp.float32))))

    if name in ("snip", "grasp"):
        model = pruner.prune(model, loss=lambda model, x: jnp.mean(forward(model, x) ** 2), data=x)
    if name == "synflow":
        model = pruner.prune(model, data=x, forward=forward)
    model, state = pruner.init(model)
    for t in range(11):
        model, state = pruner.step(model, random_like(model, t), state)
    masks = masks_of(model)
    tiles = masks["head.weight"].reshape(2, 4, 2, 4).sum((1, 3))
    assert set(tiles.ravel()) <= {0, 16} and 0 < sum(m.sum() for m in masks.values()) < 320
    assert abs(sum(m.sum() for m in masks.values()) - 160) <= 8
    for path, layer in model.items():
        assert layer.masks["weight"].packed and not np.asarray(layer.weight, np.float32)[~masks[f"{path}.weight"]].any()


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_unknown_gains_never_grow_and_harm_no_others(name):
    """PREDECESSOR row 5: one NaN gradient entry wipes out the regrowth of a RigL layer."""
    pruner = {"set": eqsparse.SET, "rigl": eqsparse.RigL}[name](distribution=0.75, schedule=WINDOW, key=KEY)
    model, state = pruner.init([eqx.nn.Linear(8, 16, key=KEY)])
    for t in range(9):
        grads = random_like(model, t)
        bad = jnp.where(jnp.arange(8) < 4, jnp.nan, grads[0].layer.weight)
        before = masks_of(model)["0.weight"]
        model, state = pruner.step(model, eqx.tree_at(lambda g: g[0].layer.weight, grads, bad), state)
        now = masks_of(model)["0.weight"]
        assert now.sum() == 32
        if name == "rigl":
            assert not (now & ~before)[:, :4].any()
            if WINDOW.is_due(t):
                assert (now & ~before)[:, 4:].any()


def test_all_gains_unknown_leaves_the_mask():
    pruner = eqsparse.RigL(distribution=0.75, schedule=WINDOW, key=KEY)
    model, state = pruner.init([eqx.nn.Linear(8, 16, key=KEY)])
    unknown = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), eqx.filter(model, eqx.is_inexact_array))
    before = masks_of(model)["0.weight"]
    for _ in range(4):
        model, state = pruner.step(model, unknown, state)
        np.testing.assert_array_equal(masks_of(model)["0.weight"], before)


def test_blocks_that_do_not_divide_do_not_drift():
    """PREDECESSOR row 7: 30×30 with 4×4 blocks went from 60% to 47% sparsity in 30 updates."""
    pruner = eqsparse.RigL(
        distribution=0.6, schedule=eqsparse.Periodic(0, 100, 1), key=KEY, structure=eqsparse.Block((4, 4)),
        drop_fraction=optax.constant_schedule(0.3),
    )  # fmt: skip
    model, state = pruner.init([eqx.nn.Linear(30, 30, key=KEY)])
    kept = []
    for t in range(30):
        model, state = pruner.step(model, random_like(model, t), state)
        kept.append(int(masks_of(model)["0.weight"].sum()))
    assert max(abs(k - 360) for k in kept) <= 8  # half a block: as near as tiles come


def test_no_weight_changes_hands_where_nothing_is_dropped():
    """PREDECESSOR row 4: with drop fraction 0, live connections are swapped; scores beyond 10³ lose `max + 1e-5`."""
    pruner = eqsparse.RigL(distribution=0.75, schedule=WINDOW, key=KEY, drop_fraction=0.0)
    model, state = pruner.init([eqx.nn.Linear(8, 16, dtype=jnp.float16, key=KEY)])
    model = eqx.tree_at(lambda m: m[0].layer.weight, model, model[0].layer.weight * 1e4)
    before = masks_of(model)["0.weight"]
    for t in range(3):
        model, state = pruner.step(model, jax.tree.map(lambda g: g * 1e4, random_like(model, t)), state)
        np.testing.assert_array_equal(masks_of(model)["0.weight"], before)


@pytest.mark.parametrize("schedule, dense", [(eqsparse.OneShot(3), 3), (eqsparse.Periodic(2, 6, 2), 2)])
def test_straight_through_follows_any_schedule(schedule, dense):
    """PREDECESSOR row 13: STE ignores one-shot and periodic schedules: sparse from step 0."""
    pruner = eqsparse.MagnitudeSTE(optax.sgd(0.1), distribution=0.75, schedule=schedule)
    model, state = pruner.init([eqx.nn.Linear(8, 8, key=KEY)])
    counts = []
    for t in range(8):
        model, state = pruner.step(model, random_like(model, t), state)
        counts.append(int(masks_of(model)["0.weight"].sum()))
    assert counts == [64] * dense + [16] * (8 - dense)
    weights = np.asarray(model[0].layer.weight)
    assert np.count_nonzero(weights) == 64
    np.testing.assert_array_equal(
        np.asarray(model[0].materialise().weight), np.where(masks_of(model)["0.weight"], weights, 0)
    )


def test_top_kast_leaves_the_rest_bitwise():
    pruner = eqsparse.TopKAST(optax.adamw(0.1, weight_decay=0.1), distribution=0.75, backward_sparsity=0.5)
    model, state = pruner.init([eqx.nn.Linear(8, 8, key=KEY)])
    before, trained = np.asarray(model[0].layer.weight), np.asarray(state.trained["0.weight"].dense())
    assert trained.sum() == 32 and (trained | ~masks_of(model)["0.weight"]).all()
    for t in range(5):
        model, state = pruner.step(model, random_like(model, t), state)
    after = np.asarray(model[0].layer.weight)
    np.testing.assert_array_equal(after[~trained].view(np.uint32), before[~trained].view(np.uint32))
    assert (after != before)[trained].all()


def test_masks_of_a_pruned_model_are_kept():
    """To train a pruned model on."""
    pruned = eqsparse.MagnitudePruning(distribution=0.9).prune([eqx.nn.Linear(10, 10, key=KEY)])
    for pruner in (
        eqsparse.StaticSparse(optax.sgd(0.1), distribution=0.5, key=KEY),
        eqsparse.NoPruning(optax.sgd(0.1)),
    ):
        model, state = pruner.init(pruned)
        model, state = pruner.step(model, random_like(model, 0), state)
        np.testing.assert_array_equal(masks_of(model)["0.weight"], masks_of(pruned)["0.weight"])
        assert not np.array_equal(model[0].weight, pruned[0].weight)


def test_everyone_draws_for_themselves():
    """PREDECESSOR row 21: random masks use one hidden key: two pruners, and all members of a vmapped ensemble, get
    the same mask."""
    layer = eqx.nn.Linear(16, 16, key=KEY)
    static = lambda key: eqsparse.StaticSparse(distribution=0.5, key=key)
    drawn = [masks_of(static(jax.random.key(i)).init([layer, layer])[0]) for i in (1, 2)]
    different = [drawn[0]["0.weight"], drawn[0]["1.weight"], drawn[1]["0.weight"], drawn[1]["1.weight"]]
    members = eqx.filter_vmap(static(KEY).init)(
        eqx.filter_vmap(lambda k: eqx.nn.Linear(16, 16, key=k))(jax.random.split(KEY, 3))
    )
    different += list(np.asarray(members[0].masks["weight"].bits))
    for i, one in enumerate(different):
        assert one.sum() == 128
        assert not any(np.array_equal(one, other) for other in different[:i])


def test_an_ensemble_of_dynamic_pruners_is_a_loop():
    # Not Adam, which takes weights that have just grown alike to almost equal values.
    pruner = eqsparse.RigL(optax.sgd(0.1), distribution=0.75, schedule=WINDOW, key=KEY)
    stack = eqx.filter_vmap(lambda k: eqx.nn.Linear(8, 8, key=k))(jax.random.split(KEY, 2))
    model, state = eqx.filter_vmap(pruner.init)(stack)
    member = lambda tree, i: jax.tree.map(lambda x: x[i] if eqx.is_array(x) else x, tree)
    alone = [(member(model, i), member(state, i)) for i in range(2)]
    step = eqx.filter_jit(eqx.filter_vmap(pruner.step))
    for t in range(5):
        grads = random_like(model, t)
        model, state = step(model, grads, state)
        alone = [pruner.step(m, member(grads, i), s) for i, (m, s) in enumerate(alone)]
    for i, (m, _) in enumerate(alone):
        np.testing.assert_array_equal(model.masks["weight"].bits[i], m.masks["weight"].bits)
        np.testing.assert_allclose(model.layer.weight[i], m.layer.weight, rtol=0, atol=1e-6)


def test_bad_settings():
    fine = {"distribution": 0.5, "key": KEY}
    with pytest.raises(ValueError, match=r"`RigL\(key=...\)` must be a `jax.random.key`"):
        eqsparse.RigL(distribution=0.5)
    with pytest.raises(ValueError, match=r"`drop_fraction` must be in \[0, 1\]. Got 1.5"):
        eqsparse.RigL(drop_fraction=1.5, **fine)
    with pytest.raises(ValueError, match=r"`TopKAST\(backward_sparsity=...\)` must be in \[0, 1\]. Got -0.1"):
        eqsparse.TopKAST(distribution=0.5, backward_sparsity=-0.1)
    with pytest.raises(ValueError, match=r"`GradualPruning\(criterion=...\)` must be a criterion. Got 'Magnitude'"):
        eqsparse.GradualPruning(criterion="Magnitude", **fine)
    with pytest.raises(ValueError, match=r"`DynamicSparse\(grow=...\)` must be a criterion. Got None"):
        eqsparse.DynamicSparse(drop=eqsparse.Magnitude(), grow=None, **fine)
    with pytest.raises(ValueError, match=r"`DynamicSparse\(order=...\)` must be an order. Got 'Before'"):
        eqsparse.DynamicSparse(drop=eqsparse.Magnitude(), grow=eqsparse.Random(), order="Before", **fine)
    with pytest.raises(
        ValueError, match=r"`Rounds\(steps=...\)` times `rounds=70000` must be below 2\*\*31. Got 70000"
    ):
        eqsparse.LotteryTicket(distribution=0.5, rounds=70000, steps=70000)
    with pytest.raises(ValueError, match=r"`LotteryTicket\(rounds=...\)` must be at least 1. Got 0"):
        eqsparse.LotteryTicket(distribution=0.5, rounds=0, steps=5)
    with pytest.raises(ValueError, match=r"`ACDC\(reset=...\)` must be a bool. Got 'no'"):
        eqsparse.ACDC(distribution=0.5, reset="no")
    with pytest.raises(ValueError, match=r"`SNFS\(momentum=...\)` must be in \[0, 1\]. Got 2"):
        eqsparse.SNFS(momentum=2, **fine)
    with pytest.raises(ValueError, match=r"`TopKAST\(decay=...\)` must be finite and not negative. Got -1"):
        eqsparse.TopKAST(distribution=0.5, backward_sparsity=0.3, decay=-1)
    with pytest.raises(ValueError, match=r"`SRSTE\(decay=...\)`"):
        eqsparse.SRSTE(distribution=0.5, decay=None)
    with pytest.raises(ValueError, match=r"`SynFlow.prune\(data=...\)` must be a batch of inputs. Got None"):
        eqsparse.SynFlow(distribution=0.5).prune(eqx.nn.Linear(4, 4, key=KEY))
    with pytest.raises(ValueError, match=r"`SynFlow.prune\(forward=...\)` must be given for arrays"):
        eqsparse.SynFlow(distribution=0.5).prune({"w": jnp.ones((4, 4))}, data=jnp.ones((1, 4)))
    with pytest.raises(ValueError, match=r"`LotteryTicket\(schedule=...\)` must not be given"):
        eqsparse.LotteryTicket(distribution=0.5, rounds=2, steps=3, schedule=eqsparse.OneShot(1))
    with pytest.raises(ValueError, match=r"`Alternating\(dense_steps=...\)` must be at least 1. Got 0"):
        eqsparse.Alternating(0, 10, 0, 5)
    with pytest.raises(ValueError, match="`grads` must have one floating-point array"):
        pruner = eqsparse.MovementPruning(distribution=0.5)
        model, state = pruner.init([eqx.nn.Linear(4, 4, key=KEY)])
        pruner.step(model, None, state)
