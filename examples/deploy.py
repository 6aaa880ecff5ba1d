"""Prune an MLP, deploy it to files, and run these in a process that cannot import eqsparse; compare.

python examples/deploy.py --width 1024 --sparsity 0.9
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import eqsparse

FEATURES, CLASSES = 64, 10

# What runs elsewhere: all that is needed are JAX, flatbuffers and the file.
ELSEWHERE = """
import sys
sys.modules["eqsparse"] = sys.modules["equinox"] = None  # so that importing them fails

import json, time
from pathlib import Path
import jax, jax.experimental.sparse
import numpy as np

file, inputs, outputs = map(Path, sys.argv[1:])
run = jax.jit(jax.export.deserialize(bytearray(file.read_bytes())).call)
x = np.load(inputs)
np.save(outputs, run(x))
seconds = []
for _ in range(20):
    start = time.perf_counter()
    run(x).block_until_ready()
    seconds.append(time.perf_counter() - start)
print(json.dumps(1e3 * float(np.median(seconds))))
"""


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--width", type=int, default=1024, help="of the two hidden layers (%(default)s)")
    option("--sparsity", type=float, default=0.9, help="fraction of each layer's weights to remove (%(default)s)")
    option("--batch", type=int, default=128, help="inputs to compare on; the files take any number (%(default)s)")
    option("--out", type=Path, metavar="DIR", help="keep the files here (otherwise in a folder that is removed)")
    args = parser.parse_args(argv)
    if not 0 <= args.sparsity < 1 or min(args.width, args.batch) < 1:
        parser.error("--sparsity must be in [0, 1), --width and --batch at least 1")
    return args


def run_elsewhere(file, x, folder):
    """Outputs, and median milliseconds, of the file in a fresh process."""
    np.save(folder / "x.npy", x)
    command = [sys.executable, "-c", ELSEWHERE, str(file), str(folder / "x.npy"), str(folder / "y.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return np.load(folder / "y.npy"), json.loads(done.stdout.splitlines()[-1])


def deploy_all(args, folder):
    model_key, x_key = jax.random.split(jax.random.key(0))
    plain = eqx.nn.MLP(FEATURES, CLASSES, args.width, depth=2, key=model_key)
    pruned = eqsparse.MagnitudePruning(distribution=args.sparsity).prune(plain)
    dense, sparse = eqsparse.materialise(pruned), eqsparse.to_bcoo(pruned)
    x = jax.random.normal(x_key, (args.batch, FEATURES))
    expected = eqx.filter_jit(lambda model, x: jax.vmap(model)(x))(dense, x)

    inputs = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"batch, {FEATURES}"), jnp.float32)
    files = {"dense": (dense, True), "sparse": (sparse, False), "sparse, portable": (sparse, True)}
    rows = []
    for name, (model, portable) in files.items():
        print(f"{name}: writing, and running in a fresh process ...", flush=True)
        file = folder / f"{name.replace(', ', '-')}.jax"
        eqsparse.deploy(file, jax.vmap(model), inputs, portable=portable)
        outputs, milliseconds = run_elsewhere(file, x, folder)
        difference = float(np.abs(outputs - expected).max())
        rows.append([name, f"{file.stat().st_size:,}", f"{milliseconds:.2f}", f"{difference:.1e}"])
    return rows


def main(argv=None):
    args = arguments(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if args.out is None else args.out
        folder.mkdir(parents=True, exist_ok=True)
        rows = deploy_all(args, folder)
    print(
        f"\nMLP {FEATURES} → {args.width} → {args.width} → {CLASSES}, {args.sparsity:.0%} sparse, batch {args.batch}\n"
    )
    rows = [["file", "bytes", "ms", "largest difference"], *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for name, *numbers in rows:
        print("  ".join([name.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True))]))
    print("\nms: median of 20 calls in the fresh process, which has no eqsparse and no Equinox")


if __name__ == "__main__":
    main()
