"""Trains on 8 virtual devices (started by `test_training.py`): masks to a file, what came of it to standard output."""

import json
import re
import sys

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

import cases  # noqa: E402
import equinox as eqx  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P  # noqa: E402

import eqsparse  # noqa: E402

LAYOUTS = (P(("a", "b"), None), P(None, ("a", "b")), P("a", "b"))  # fully sharded, tensor parallel, both
OF_MEMBERS = (P("a", "b", None), P("a", None, "b"))
NOT_SUMS = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def mesh_of(kind):
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(getattr(AxisType, kind),) * 2)


def place(tree, mesh, specs):
    """A model (or gradients for many steps), the weights of each layer by its layout."""

    def lay(spec):
        to = lambda x: NamedSharding(mesh, P(*(None,) * (x.ndim - len(spec)), *spec))
        return lambda x: jax.device_put(x, to(x)) if eqx.is_array(x) else x

    return {path: jax.tree.map(lay(specs[path]), layer) for path, layer in tree.items()}


def moved(compiled):
    """What the compiled function sends between devices, but for sums."""
    found = {op: len(re.findall(rf"{op}(?:-start)?\(", compiled.as_text())) for op in NOT_SUMS}
    return {op: n for op, n in found.items() if n}


def astray(tree, mesh, spec):
    """The arrays of a weight's shape (or that of its packed mask) that do not lie as the weight."""
    here = NamedSharding(mesh, spec)
    arrays = [x for x in jax.tree.leaves(tree) if eqx.is_array(x) and x.ndim == len(spec)]
    assert arrays
    return [f"{x.shape} by {x.sharding}" for x in arrays if not x.sharding.is_equivalent_to(here, x.ndim)]


def trained(case, mesh, at):
    """Masks and weights of one case, and what is wrong with how it is laid out."""
    name, structures, _, way = case
    layouts = OF_MEMBERS if way in ("members", "stacked") else LAYOUTS
    specs = {path: layouts[(at + i) % len(layouts)] for i, path in enumerate(structures)}
    plain = cases.model_of(structures, way)
    model, grads = place(plain, mesh, specs), place(cases.gradients(plain), mesh, specs)
    inputs = way, cases.pruner_of(name, structures), model, grads
    compiled = eqx.filter_jit(cases.train).lower(*inputs).compile()
    start, along, (weights, state) = compiled(*inputs)
    masks = {f"{path}/{t}": np.asarray(m) for path in start for t, m in enumerate([start[path], *along[path]])}
    wrong = [where for path, spec in specs.items() for where in astray((start[path], weights[path]), mesh, spec)]
    if len(specs) == 1:
        wrong += astray((state, *start.values()), mesh, next(iter(specs.values())))
    return {"moved": moved(compiled.compiled), "astray": wrong}, masks | jax.tree.map(np.asarray, weights)


def by_hand(kind, spec):
    """As a user does it: data parallel, gradients of a mean over all devices, not all of it in one program."""
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        model, pruner, loss, batch = cases.regression()
        lay = eqx.filter_shard if kind == "Auto" else jax.device_put
        model = lay(model, NamedSharding(mesh, spec))
        chosen = cases.pruned(eqsparse.SNIP(distribution=0.75, packed=True), {"x": model})["x"]
        batch = jax.device_put(batch, NamedSharding(mesh, P(("a", "b"))))
        masked, state = pruner.init(model)
        born = astray((masked, state), mesh, spec)
        masks, compiled = [masked.masks["weight"]], []
        listen = lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
        for t in range(3):
            grads = eqx.filter_jit(eqx.filter_grad(loss))(masked, *batch)
            if t == 1:
                jax.monitoring.register_event_duration_secs_listener(listen)
            masked, state = pruner.step(masked, grads, state)
            masks.append(masked.masks["weight"])
        everywhere = [np.asarray(m.bits) for m in masks]
        for m, whole in zip(masks, everywhere, strict=True):
            for shard in m.bits.addressable_shards:
                np.testing.assert_array_equal(shard.data, whole[shard.index])
        again = eqsparse.set_masks(masked, {"weight": np.ones(masked.weight.shape, bool)})
        figures = {
            "astray": born + astray((masked, state, again, chosen), mesh, spec),
            "compiled again": len(compiled),
            "moved": moved(eqx.filter_jit(pruner.step).lower(masked, grads, state).compile().compiled),
            "kept": masked.masks["weight"].nnz(),
        }
    along = {f"by hand {kind}/{t}": m for t, m in enumerate(everywhere)}
    return figures, along | {f"by hand {kind}/chosen": np.asarray(chosen.masks["weight"].bits)}


STRADDLING = {
    "a byte": (eqsparse.Unstructured(), P(None, ("a", "b")), (64, 32), True),
    "a run": (eqsparse.NM(2, 16), P(None, ("a", "b")), (32, 64), False),
    "a tile": (eqsparse.Block((16, 4)), P("a", "b"), (32, 64), False),
    "a tile at the edge": (eqsparse.Block((4, 4)), P(None, "b"), (32, 60), False),
    "a run of bytes": (eqsparse.NM(2, 16), P(None, ("a", "b")), (32, 64), True),
}


def refused(name):
    """What `prune` and `init` say, and (once: it compiles) whether `init` takes the layout that it says would do."""
    structure, spec, shape, packed = STRADDLING[name]
    mesh = mesh_of("Auto")
    layer = eqx.nn.Linear(shape[1], shape[0], use_bias=False, key=cases.KEY)
    pruner = eqsparse.MagnitudePruning(distribution=0.5, structure=structure, packed=packed)
    lay = lambda spec: {"head": eqx.filter_shard(layer, NamedSharding(mesh, spec))}
    said = []
    for start in (pruner.prune, pruner.init):
        try:
            start(lay(spec))
        except ValueError as error:
            said.append(str(error))
    would_do = eval(re.search(r"`(P(?:artitionSpec)?\(.*\))` it would do", said[0])[1], {"P": P, "PartitionSpec": P})
    taken = [] if name != "a run of bytes" else astray(pruner.init(lay(would_do))[0], mesh, would_do)
    return {"messages": said, "spec": list(would_do), "astray": taken}


def on_other_devices():
    """What `init` says of a model of which one weight is sharded and another is not."""
    sharded, alone = (eqx.nn.Linear(8, 8, key=cases.KEY) for _ in range(2))
    model = [eqx.filter_shard(sharded, NamedSharding(mesh_of("Auto"), P())), alone]
    try:
        eqsparse.MagnitudePruning(distribution=0.5).init(model)
    except ValueError as error:
        return str(error)


def main(folder):
    assert jax.device_count() == 8
    found, arrays = {}, {}
    for at, (name, case) in enumerate(cases.cases().items()):
        for shift, kind in enumerate(case[2]):
            with jax.set_mesh(mesh_of(kind)):
                try:
                    found[f"{name}, {kind}"], made = trained(case, mesh_of(kind), at + shift)
                except Exception as error:
                    found[f"{name}, {kind}"], made = {"error": f"{type(error).__name__}: {str(error)[:600]}"}, {}
            arrays |= {f"{name}, {kind}/{key}": array for key, array in made.items()}
            jax.clear_caches()
            print(name, kind, found[f"{name}, {kind}"], file=sys.stderr, flush=True)
    hands = {}
    for kind, spec in (("Auto", P("a", "b")), ("Explicit", P())):
        hands[kind], made = by_hand(kind, spec)
        arrays |= made
    np.savez(f"{folder}/masks.npz", **arrays)
    said = {"refused": {name: refused(name) for name in STRADDLING}, "other devices": on_other_devices()}
    print(json.dumps({"cases": found, "by hand": hands, **said}))


if __name__ == "__main__":
    main(*sys.argv[1:])
