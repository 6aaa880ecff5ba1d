"""`ERK`: the closed form against the paper's iteration, on the paper's nets and on random ones."""

from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqsparse import ERK, Uniform
from eqsparse._selection import density_of
from eqsparse._sites import read

FULL = 2**32 - 1


def resnet50():
    """Convolutions (out, in, height, width) and the classifier; He et al., table 1."""
    shapes = {"stem": (64, 3, 7, 7)}
    width_in = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            at = f"stages.{stage}.{block}"
            shapes[f"{at}.reduce"] = (width, width_in, 1, 1)
            shapes[f"{at}.conv"] = (width, width, 3, 3)
            shapes[f"{at}.expand"] = (4 * width, width, 1, 1)
            if block == 0:
                shapes[f"{at}.shortcut"] = (4 * width, width_in, 1, 1)
            width_in = 4 * width
    shapes["head"] = (1000, 2048)
    return shapes


def vit_b16():
    """Width 768, 12 blocks, patches of 16 × 16 × 3; Dosovitskiy et al., table 1."""
    shapes = {"patches": (768, 3, 16, 16)}
    for block in range(12):
        for name in ("query", "key", "value", "out"):
            shapes[f"blocks.{block}.{name}"] = (768, 768)
        shapes[f"blocks.{block}.up"] = (3072, 768)
        shapes[f"blocks.{block}.down"] = (768, 3072)
    shapes["head"] = (1000, 768)
    return shapes


def tree_of(shapes, dtype=np.float16):
    # Put, not made: making compiles for each shape.
    return {path: jax.device_put(np.broadcast_to(np.zeros((), dtype), shape)) for path, shape in shapes.items()}


def densities(distribution, tree):
    """The densities as they are held, in 2⁻³²."""
    return {b.paths[0]: int(b.density) for b in distribution.budgets(read(tree))}


def on_grid(sparsity):
    return Fraction(round(sparsity * 10**7), 10**7)


def iterated(shapes, sparsity, power=1.0):
    """As the reference code does: solve for ε, make dense what comes out above 1, and solve again for the rest."""
    target = float((1 - on_grid(sparsity)) * sum(int(np.prod(s)) for s in shapes.values()))
    n = {path: int(np.prod(s)) for path, s in shapes.items()}
    raw = {path: (sum(s) / n[path]) ** power for path, s in shapes.items()}
    dense = set()
    while True:
        rest = [p for p in shapes if p not in dense]
        if not rest:
            return dict.fromkeys(shapes, 1.0)
        epsilon = (target - sum(n[p] for p in dense)) / sum(raw[p] * n[p] for p in rest)
        over = {p for p in rest if epsilon * raw[p] > 1}
        if not over:
            return {p: 1.0 if p in dense else epsilon * raw[p] for p in shapes}
        dense |= over


def kept(n, density):
    return n if density == FULL else (n * density + 2**31) >> 32


def check(shapes, sparsity, power=1.0, tree=None):
    """Densities are the iteration's, saturated layers are dense, and the total is Uniform's to one weight per site."""
    tree = tree_of(shapes) if tree is None else tree
    found, expected = densities(ERK(sparsity, power=power), tree), iterated(shapes, sparsity, power)
    assert set(found) == set(shapes)
    off = {p: abs(found[p] / 2**32 - expected[p]) * np.prod(s) for p, s in shapes.items()}
    assert max(off.values()) <= 1, off  # in weights
    assert all(found[p] == FULL for p in shapes if expected[p] == 1)
    total, uniform = 0, 0
    for path, shape in shapes.items():
        n = int(np.prod(shape))
        total += kept(n, found[path])
        uniform += (n * (1 - on_grid(sparsity)) + Fraction(1, 2)).__floor__()
    assert abs(total - uniform) <= len(shapes), (total, uniform, len(shapes))
    return found


# The paper's cases.


def test_sizes_of_the_papers_nets():
    """25.5 million weights without norms and biases; ViT-B/16's 86.6 million without those and embeddings: 85.7."""
    assert sum(int(np.prod(s)) for s in resnet50().values()) == 25_502_912
    assert len(resnet50()) == 54
    assert sum(int(np.prod(s)) for s in vit_b16().values()) == 86_292_480
    assert len(vit_b16()) == 74


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.9, 0.95, 0.98])
@pytest.mark.parametrize("net", [resnet50, vit_b16])
def test_the_papers_nets(net, sparsity):
    check(net(), sparsity)


def test_resnet50_at_80_percent():
    """Raw densities by hand: 130/4096 is the largest, 1030/2359296 the smallest."""
    found = check(resnet50(), 0.8)
    assert found["stages.0.0.reduce"] == FULL
    assert found["stages.3.1.conv"] == min(found.values()) < FULL // 20


def test_vit_b16_at_80_percent():
    """By hand: no layer saturates but none is far: density ∝ (a + b) / ab, the four attention maps being equal."""
    found = check(vit_b16(), 0.8)
    query, up = found["blocks.3.query"], found["blocks.3.up"]
    assert query == found["blocks.11.out"] and up == found["blocks.0.down"]
    np.testing.assert_allclose(query / up, (1536 / 768**2) / (3840 / (768 * 3072)), rtol=1e-5)


# Random nets.


def random_net(rng):
    """Linear layers, convolutions and embeddings, from tiny to wide."""
    shapes = {}
    for i in range(int(rng.integers(1, 13))):
        matrix = tuple(int(x) for x in np.exp(rng.uniform(0, 6.2, 2)).astype(int))
        kernel = [(), (), (1, 1), (3, 3), (5,)][int(rng.integers(5))]
        shapes[f"l{i}"] = (*matrix, *kernel)
    return shapes


@pytest.mark.parametrize("part", range(5))
def test_random_nets(part):
    """500 nets, at sparsities from 0 to 0.999."""
    rng = np.random.default_rng(part)
    for _ in range(100):
        sparsity = float(rng.choice([0.0, 0.999, rng.uniform(0, 0.999), 1 - 10 ** rng.uniform(-3, 0)]))
        check(random_net(rng), sparsity)


@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_powers_of_the_raw_density(power):
    rng = np.random.default_rng(10)
    for _ in range(20):
        check(random_net(rng), float(rng.uniform(0, 0.999)), power)


@pytest.mark.parametrize("power", [60.0, 400.0])
def test_a_large_power_fills_one_layer_after_the_other(power):
    """Raw densities by hand: (3 + 3)/9, (20 + 30)/600, (300 + 400)/120000. 9 + 600 of 120609 is 0.505%."""
    shapes = {"c": (300, 400), "a": (3, 3), "b": (20, 30)}
    for sparsity, kept_of_b, kept_of_c in ((0.99, 600, 597), (0.998, 232, 0)):
        found = densities(ERK(sparsity, power=power), tree_of(shapes))
        assert found["a"] == FULL
        assert abs(kept(600, found["b"]) - kept_of_b) <= 1
        assert abs(kept(120000, found["c"]) - kept_of_c) <= 1


def test_power_zero_is_uniform():
    shapes = {"a": (30, 20), "b": (7, 5, 3, 3), "c": (400, 300)}
    found = densities(ERK(0.83, power=0.0), tree_of(shapes))
    np.testing.assert_allclose([d / 2**32 for d in found.values()], 0.17, rtol=1e-6)


@pytest.mark.parametrize("sparsity", [0.001, 0.1, 0.2, 0.5, 0.8, 0.9])
@pytest.mark.parametrize(
    "shapes", [[(4096, 4096), (4096, 11008)], [(4096, 4096)] * 4 + [(11008, 4096)] * 2, [(32000, 4096)]]
)
def test_large_layers(shapes, sparsity):
    """PREDECESSOR row 1: layers of language models, 10⁷ to 10⁸ weights, where float32 sizes go wrong."""
    shapes = {f"l{i}": s for i, s in enumerate(shapes)}
    check(shapes, sparsity, tree=tree_of(shapes, jnp.float8_e4m3fn))


# Ends.


def test_sparsity_zero_is_dense():
    """PREDECESSOR row 15: sparsity 0 crashes there on some nets."""
    rng = np.random.default_rng(11)
    for _ in range(20):
        shapes = random_net(rng)
        assert densities(ERK(0.0), tree_of(shapes)) == dict.fromkeys(shapes, FULL)


def test_sparsity_one_is_empty():
    shapes = {"a": (30, 20), "b": (7, 5, 3, 3)}
    assert densities(ERK(1.0), tree_of(shapes)) == {"a": 0, "b": 0}


def test_one_layer_keeps_what_is_asked():
    found = densities(ERK(0.9), tree_of({"a": (30, 20)}))
    np.testing.assert_allclose(found["a"] / 2**32, 0.1, rtol=1e-6)


def test_layers_of_size_zero_are_left_out():
    found = ERK(0.5).targets({"a": jnp.zeros((4, 4)), "none": jnp.zeros((0, 4))})
    assert found["a"] == 0.5 and found["none"] is None


def test_no_site_at_all():
    assert ERK(0.5).targets({"bias": jnp.zeros(3)}) == {}


# Overrides.


def test_overridden_sites_are_left_out_of_the_budget():
    shapes = {"a": (300, 200), "b": (100, 50), "c": (40, 30), "d": (64, 64)}
    found = densities(ERK(0.8, {"b": 0.5, "c": None}), tree_of(shapes))
    assert found["b"] == 2**31 and "c" not in found
    alone = densities(ERK(0.8), tree_of({p: shapes[p] for p in "ad"}))
    assert {p: found[p] for p in "ad"} == alone


def test_all_layers_overridden():
    """PREDECESSOR row 15: a division by zero there."""
    tree = tree_of({"a": (30, 20), "b": (10, 5)})
    assert ERK(0.8, {"*": 0.5}).targets(tree) == {"a": 0.5, "b": 0.5}
    assert ERK(0.8, {"*": None}).targets(tree) == {"a": None, "b": None}


# Stacks, sweeps, compiled.


def test_layers_of_a_stack_count_as_layers():
    """PREDECESSOR row 22: the stack axis is no fan-in there; here a stack of five is as five layers."""
    linear = lambda out, inp: eqx.nn.Linear(inp, out, key=jax.random.key(0))
    stack = eqx.filter_vmap(lambda k: eqx.nn.Linear(20, 30, key=k))(jax.random.split(jax.random.key(0), 5))
    stacked = densities(ERK(0.8), [stack, linear(40, 300)])
    apart = densities(ERK(0.8), [[linear(30, 20) for _ in range(5)], linear(40, 300)])
    assert stacked["1.weight"] == apart["1.weight"]
    assert {stacked["0.weight"]} == {apart[f"0.{i}.weight"] for i in range(5)}


def test_sweeps_over_traced_sparsities():
    """Saturation depends on the target: a compiled sweep agrees with one sparsity at a time."""
    shapes = {"a": (300, 200), "b": (10, 5), "c": (40, 3), "d": (64, 64)}
    tree = {p: jnp.zeros(s) for p, s in shapes.items()}
    sweep = np.asarray([0.0, 0.1, 0.5, 0.8, 0.95, 0.999, 1.0], np.float32)
    traces = []

    @jax.jit
    @jax.vmap
    def swept(sparsity):
        traces.append(1)
        return {b.paths[0]: b.density for b in ERK(sparsity).budgets(read(tree))}

    found = swept(sweep)
    for i, sparsity in enumerate(sweep):
        expected = densities(ERK(float(sparsity)), tree)
        assert {path: int(found[path][i]) for path in shapes} == expected
    swept(sweep / 2)
    assert len(traces) == 1


def test_densities_are_those_of_uniform_in_sum_for_a_masked_model(getkey):
    model = eqx.nn.MLP(30, 10, 50, 2, key=getkey())
    sizes = {path: site.weight.size for path, site in read(model).items()}
    erk, uniform = densities(ERK(0.8), model), densities(Uniform(0.8), model)
    assert set(uniform.values()) == {int(density_of(0.8))}
    total = lambda held: sum(kept(n, held[path]) for path, n in sizes.items())
    assert abs(total(erk) - total(uniform)) <= len(sizes)


@pytest.mark.own_message
@pytest.mark.parametrize("power", [-1, -0.5, float("nan"), float("inf")])
def test_wrong_powers(power):
    with pytest.raises(ValueError, match=rf"`ERK\(power=...\)` must .*Got {power}\."):
        ERK(0.5, power=power)


@pytest.mark.own_message
@pytest.mark.parametrize("power", ["x", None, [1.0]])
def test_powers_that_are_no_numbers(power):
    with pytest.raises(ValueError, match=r"`ERK\(power=...\)` must be .*Got "):
        ERK(0.5, power=power)
