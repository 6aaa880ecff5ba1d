"""Train an agent by deep Q-learning (DQN), dense and sparse, and compare what it earns.

python examples/reinforcement.py                                         # MinAtar's Breakout, 10x10 pixels
python examples/reinforcement.py --env CartPole-v1 --sparsity 0.5        # a network of 768 weights
python examples/reinforcement.py --env ALE/MsPacman-v5 --frames 10000000 --runs 5 --replay 1000000

Atari's games need `pip install ale-py opencv-python`.
"""

import _common as common
import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax

import eqsparse

LIMIT = 1000  # steps of an episode in games that have no limit of their own


def features(convs, x):
    for conv in convs:
        x = jax.nn.relu(conv(x))
    return x.ravel()


class QNetwork(eqx.Module):
    """What each action is worth in a state: convolutions if it is an image, then two linear layers."""

    convs: list[eqx.nn.Conv2d]
    hidden: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, shape, actions, *, key):
        keys = jax.random.split(key, 5)
        if len(shape) != 3:
            sizes = []
        elif shape[1] >= 64:  # that of the DQN paper
            sizes = [(shape[0], 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)]
        else:
            sizes = [(shape[0], 16, 3, 1)]
        self.convs = [eqx.nn.Conv2d(*size, key=k) for size, k in zip(sizes, keys, strict=False)]
        seen = jax.eval_shape(lambda x: features(self.convs, x), jax.ShapeDtypeStruct(shape, jnp.float32))
        width = 512 if len(sizes) == 3 else 128
        self.hidden = eqx.nn.Linear(seen.size, width, key=keys[3])
        self.head = eqx.nn.Linear(width, actions, key=keys[4])

    def __call__(self, x):
        scale = 255 if x.dtype == jnp.uint8 else 1
        x = features(self.convs, x.astype(jnp.float32) / scale)
        return self.head(jax.nn.relu(self.hidden(x)))


class ChannelsFirst(gymnasium.ObservationWrapper):
    def __init__(self, env):
        super().__init__(env)
        height, width, channels = env.observation_space.shape
        self.observation_space = gymnasium.spaces.MultiBinary((channels, height, width))

    def observation(self, observation):
        return np.moveaxis(observation, -1, 0)


def make_env(name):
    if name.startswith("ALE/"):
        try:
            import ale_py
        except ImportError:
            raise SystemExit(f"--env {name} needs `pip install ale-py opencv-python`.") from None
        gymnasium.register_envs(ale_py)
        env = gymnasium.wrappers.AtariPreprocessing(gymnasium.make(name, frameskip=1))
        return gymnasium.wrappers.FrameStackObservation(env, 4)
    if name.startswith("MinAtar/"):
        if name not in gymnasium.registry:
            import minatar.gym

            minatar.gym.register_envs()
        return ChannelsFirst(gymnasium.make(name, max_episode_steps=LIMIT, disable_env_checker=True))
    try:
        env = gymnasium.make(name)
    except gymnasium.error.Error as error:
        raise SystemExit(f"--env: {error}") from None
    spaces = gymnasium.spaces
    if not isinstance(env.action_space, spaces.Discrete) or not isinstance(env.observation_space, spaces.Box):
        raise SystemExit(
            "--env must have so many actions to choose from, and arrays of numbers as observations. "
            f"{name} has {env.action_space} and {env.observation_space}."
        )
    return env


class Replay:
    """The last so many transitions."""

    def __init__(self, capacity, observation):
        many = lambda shape, dtype: np.zeros((capacity, *shape), dtype)
        self.arrays = [
            many(observation.shape, observation.dtype), many((), np.int32), many((), np.float32),
            many(observation.shape, observation.dtype), many((), bool),
        ]  # fmt: skip
        self.count = 0

    def add(self, *transition):
        for array, value in zip(self.arrays, transition, strict=True):
            array[self.count % len(array)] = value
        self.count += 1

    def sample(self, rng, size):
        rows = rng.integers(min(self.count, len(self.arrays[0])), size=size)
        return tuple(array[rows] for array in self.arrays)


def loss(model, batch, target, discount=0.99):
    """Of a batch of transitions: how far the worth of an action is from its reward and the worth of what comes next."""
    observation, action, reward, following, terminated = batch
    worth = jnp.take_along_axis(jax.vmap(model)(observation), action[:, None], axis=1)[:, 0]
    later = jnp.where(terminated, 0.0, jax.vmap(target)(following).max(axis=1))
    return optax.huber_loss(worth, jax.lax.stop_gradient(reward + discount * later)).mean()


@eqx.filter_jit
def update(model, pruner, state, batch, target):
    return pruner.step(model, eqx.filter_grad(loss)(model, batch, target), state)


@eqx.filter_jit
def predict(model, observations):
    return jax.vmap(model)(observations)


def act(model, observations, chance, rng):
    """The best actions, or with some chance any."""
    worth = np.asarray(predict(model, observations))
    anything = rng.integers(worth.shape[1], size=len(worth))
    return np.where(rng.random(len(worth)) < chance, anything, worth.argmax(axis=1))


def train(name, model, pruner, *, frames, envs, batch, replay, seed, tick=lambda frames: None, curve=30):
    """The trained model; (frame, mean of the last 50 returns, sparsity) along the way; some observations."""
    rng = np.random.default_rng(seed)
    envs = [make_env(name) for _ in range(envs)]
    observations = np.stack([env.reset(seed=1000 * seed + i)[0] for i, env in enumerate(envs)])
    memory = Replay(replay, observations[0])
    earned, returns, history = np.zeros(len(envs)), [], []
    updates, warmup, target, state = frames // len(envs), 1000 // len(envs), None, None
    for i in range(updates + warmup):
        chance = max(0.05, 1 - max(0, i - warmup) / (updates / 4))
        actions = act(model, observations, chance, rng)
        for j, env in enumerate(envs):
            following, reward, terminated, truncated, _ = env.step(int(actions[j]))
            memory.add(observations[j], actions[j], reward, following, terminated)
            earned[j] += reward
            if terminated or truncated:
                returns.append(earned[j])
                earned[j], (following, _) = 0, env.reset()
            observations[j] = following
        if i < warmup:
            continue
        if state is None:  # at-initialisation pruners need a batch, which there is now
            plain = model
            at_first = lambda model, batch, plain=plain: loss(model, batch, plain)
            model, state = common.begin(pruner, model, at_first, memory.sample(rng, batch), by_observation)
        if target is None or (i - warmup) % max(1, min(500, updates // 40)) == 0:
            target = model
        model, state = update(model, pruner, state, memory.sample(rng, batch), target)
        done = i - warmup + 1
        if done % max(1, updates // curve) == 0 or done == updates:
            mean = np.mean(returns[-50:]) if returns else np.nan
            history.append((done * len(envs), mean, common.sparsity_of(model)))
        tick(len(envs))
    return model, history, memory


def by_observation(model, batch):
    """What `SynFlow` and those after training run; observations that are whole numbers stay as they are."""
    return jax.vmap(model)(batch[0])


def evaluate(name, model, *, episodes, envs, seed):
    """Returns of episodes in which one action of a hundred is any."""
    rng, returns = np.random.default_rng(seed), []
    envs = [make_env(name) for _ in range(envs)]
    for first in range(0, episodes, len(envs)):
        observations = np.stack([env.reset(seed=10**6 * (seed + 1) + first + j)[0] for j, env in enumerate(envs)])
        earned, over = np.zeros(len(envs)), np.zeros(len(envs), bool)
        while not over.all():
            actions = act(model, observations, 0.01, rng)
            for j in np.flatnonzero(~over):
                observations[j], reward, terminated, truncated, _ = envs[j].step(int(actions[j]))
                earned[j] += reward
                over[j] = terminated or truncated
        returns += earned.tolist()
    return np.array(returns[:episodes])


def interval(returns, rng, times=2000):
    """Mean and a 95% bootstrap interval of returns (runs, episodes): runs are drawn anew, and in each its episodes."""
    runs, episodes = returns.shape
    which = rng.integers(runs, size=(times, runs, 1))
    means = returns[which, rng.integers(episodes, size=(times, runs, episodes))].mean(axis=(1, 2))
    return returns.mean(), *np.percentile(means, [2.5, 97.5])


def arguments(argv):
    parser = common.options(
        __doc__, algorithm="MagnitudePruning", sparsity=0.98, distribution="ERK", name="reinforcement.png"
    )  # fmt: skip
    option = parser.add_argument
    option("--env", default="MinAtar/Breakout-v1", metavar="NAME", help="of Gymnasium (%(default)s)")
    option("--runs", type=int, default=2, help="dense and sparse, with seeds one after the other (%(default)s)")
    option("--frames", type=int, default=60_000, help="of each run (%(default)s)")
    option("--envs", type=int, default=8, help="games played side by side, for one update (%(default)s)")
    option("--batch", type=int, default=64, help="transitions of an update (%(default)s)")
    option("--replay", type=int, default=50_000, help="transitions to remember (%(default)s)")
    option("--episodes", type=int, default=40, help="to evaluate each run on (%(default)s)")
    option("--rate", type=float, default=5e-4, help="of Adam (%(default)s)")
    args = common.parsed(parser, argv, ("runs", "envs", "batch", "replay", "episodes"))
    if args.frames < args.envs:
        parser.error(f"--frames must be --envs={args.envs} at least. Got {args.frames}.")
    return args


def main(argv=None):
    args = arguments(argv)
    env = make_env(args.env)
    shape, actions = env.observation_space.shape, int(env.action_space.n)
    optim, updates = optax.adam(args.rate), args.frames // args.envs
    console = common.console()

    names = ["dense", args.algorithm]
    models, curves, returns, memories = {}, {}, {}, {}
    with common.progress(console, dict.fromkeys(names, args.runs * updates * args.envs)) as tick:
        for name in names:
            returns[name] = np.zeros((args.runs, args.episodes))
            for run in range(args.runs):
                seed = args.seed + run
                pruner = common.make_pruner(
                    name, optim, sparsity=args.sparsity, steps=updates, every=max(5, updates // 100),
                    distribution=args.distribution, seed=seed,
                )  # fmt: skip
                if name in common.AFTER_TRAINING:
                    dense, rng = eqsparse.materialise(models["dense", run]), np.random.default_rng(seed)
                    batches = (memories[run].sample(rng, 256) for _ in range(8))
                    model = common.after_training(pruner, dense, batches, by_observation)
                    curve = [(args.frames, np.nan, common.sparsity_of(model))]
                    tick(name, updates * args.envs)
                else:
                    model = QNetwork(shape, actions, key=jax.random.key(seed))
                    model, curve, memories[run] = train(
                        args.env, model, pruner, frames=args.frames, envs=args.envs, batch=args.batch,
                        replay=args.replay, seed=seed, tick=lambda frames, name=name: tick(name, frames),
                    )  # fmt: skip
                models[name, run], curves[f"{name}, seed {seed}"] = model, curve
                returns[name][run] = evaluate(args.env, model, episodes=args.episodes, envs=args.envs, seed=seed)

    rows = []
    for name in names:
        mean, low, high = interval(returns[name], np.random.default_rng(0))
        cells = common.size_cells(models[name, 0], models["dense", 0])
        rows.append((name, f"{mean:.2f}", f"{low:.2f} to {high:.2f}", *cells))
    console.print(common.results_table(
        f"{args.env}, {args.runs} runs of {args.frames:,} frames",
        ["", "return", "95% interval", "weights kept", "bytes exported"], rows,
        f"of {args.episodes} episodes after each run; {args.sparsity:.0%} by {args.distribution}, biases are kept;\n"
        f"seeds from {args.seed}",
    ))  # fmt: skip
    common.lines(curves, "return, mean of 50 episodes", "frame", args.out)
    console.print(f"Figure: {args.out}", soft_wrap=True)
    observations = memories[0].sample(np.random.default_rng(0), args.batch)[0]
    console.print(common.same_predictions(predict, models[names[-1], 0], observations), soft_wrap=True)


if __name__ == "__main__":
    main()
