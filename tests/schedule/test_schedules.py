"""Schedules: when, and how far; on plain and on traced steps."""

from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from eqsparse import NoSchedule, OneShot, Periodic, Polynomial

STEPS = range(0, 24)

is_due = eqx.filter_jit(lambda schedule, steps: jax.vmap(schedule.is_due)(steps))
sparsity = eqx.filter_jit(lambda schedule, target, steps: jax.vmap(lambda s: schedule.sparsity(target, s))(steps))


def due_steps(schedule, steps=STEPS):
    """By hand at plain steps, and compiled over all of them: the same."""
    plain = [bool(schedule.is_due(step)) for step in steps]
    traced = is_due(schedule, jnp.asarray(list(steps), jnp.int32))
    assert traced.dtype == bool and traced.tolist() == plain
    return [step for step, due in zip(steps, plain, strict=True) if due]


def path(schedule, target, steps=STEPS):
    plain = [float(schedule.sparsity(target, step)) for step in steps]
    traced = sparsity(schedule, jnp.float32(target), jnp.asarray(list(steps), jnp.int32))
    np.testing.assert_allclose(np.asarray(traced), plain, rtol=1e-6)
    return plain


def test_no_schedule_never_updates():
    assert due_steps(NoSchedule()) == []
    assert path(NoSchedule(), 0.9) == [np.float32(0.9)] * len(STEPS)


@pytest.mark.parametrize("step", [0, 5, 23])
def test_one_shot_updates_once(step):
    """From nothing to the target."""
    assert due_steps(OneShot(step)) == [step]
    assert path(OneShot(step), 0.9) == [0.0] * step + [np.float32(0.9)] * (len(STEPS) - step)


@pytest.mark.parametrize(
    "start, stop, every, expected",
    [
        (4, 12, 4, [4, 8, 12]),
        (4, 14, 4, [4, 8, 12, 14]),
        (0, 3, 1, [0, 1, 2, 3]),
        (5, 5, 3, [5]),
        (5, 6, 10, [5, 6]),
        (0, 20, 100, [0, 20]),
    ],
)
def test_updates_at_start_every_so_often_and_at_stop(start, stop, every, expected):
    """PREDECESSOR row 12: a window shorter than the frequency never updates there."""
    assert due_steps(Periodic(start, stop, every)) == expected
    assert due_steps(Polynomial(start, stop, every)) == expected


def test_periodic_is_at_the_target_from_the_start():
    assert path(Periodic(4, 12, 4), 0.75) == [0.0] * 4 + [0.75] * 20


def test_polynomial_by_hand():
    """Zhu and Gupta, equation (1), from 0: s (1 - (1 - p)³), with s = 0.8 and p in quarters."""
    values = path(Polynomial(4, 12, 2), 0.8, [0, 3, 4, 6, 8, 10, 12, 13, 1000])
    cubic = [0.8 * (1 - float(Fraction(4 - i, 4) ** 3)) for i in range(5)]
    np.testing.assert_allclose(values, [0, 0, *cubic, 0.8, 0.8], rtol=1e-6, atol=0)
    linear = path(Polynomial(0, 10, 1, power=1), 0.5, range(11))
    np.testing.assert_allclose(linear, [0.05 * i for i in range(11)], rtol=1e-6, atol=1e-9)
    root = path(Polynomial(0, 4, 1, power=0.5), 1.0, [0, 3, 4])
    np.testing.assert_allclose(root, [0, 0.5, 1], rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 60), st.integers(0, 10**7), st.floats(0.1, 6))
def test_the_target_is_reached_whatever_every_is(start, length, every, removed, power):
    """PREDECESSOR row 12: 0.788 for 0.9 there if the end is no multiple of the frequency. `stop` is an update, at
    the target bit for bit; before it the sparsity climbs and never passes the target."""
    stop, target = start + length, np.float32(removed / 10**7)
    schedule = Polynomial(start, stop, every, power)
    steps = jnp.arange(start, start + 60, dtype=jnp.int32)
    due = np.asarray(is_due(schedule, steps))
    expected = [s == stop or (s < stop and (s - start) % every == 0) for s in range(start, start + 60)]
    assert due.tolist() == expected
    values = np.asarray(sparsity(schedule, target, steps))
    assert (values[length:] == target).all()
    assert (np.diff(values) >= 0).all() and (values <= target).all() and (values >= 0).all()


@pytest.mark.parametrize("make", [lambda: OneShot(3), lambda: Periodic(1, 3, 5), lambda: Polynomial(1, 3, 5)])
def test_targets_are_given_back_bit_for_bit(make):
    """PREDECESSOR row 12. NaN-free, of any float32 value, zero and one too."""
    for target in (0.0, 0.1, 0.9, 0.9999999, 1.0):
        found = make().sparsity(target, 3)
        assert found.dtype == jnp.float32
        assert np.asarray(found).tobytes() == np.float32(target).tobytes()


def test_steps_beyond_what_float32_counts():
    """2²⁴ + 1 is no float32; updates and the end are exact."""
    start, stop = 2**24, 2**30 + 1
    schedule = Polynomial(start, stop, 3)
    assert due_steps(schedule, [start - 1, start, start + 1, start + 3, stop - 1, stop, stop + 1]) == [
        start,
        start + 3,
        *([stop - 1] if (stop - 1 - start) % 3 == 0 else []),
        stop,
    ]
    assert float(schedule.sparsity(0.9, stop - 1)) <= np.float32(0.9) == float(schedule.sparsity(0.9, stop))
    last = 2**31 - 1
    assert due_steps(OneShot(last), [0, last - 1, last]) == [last]


def test_changing_the_numbers_does_not_retrace():
    traces = []

    @eqx.filter_jit
    def run(schedule, target, step):
        traces.append(1)
        return schedule.is_due(step), schedule.sparsity(target, step)

    for start, stop, every, power in ((0, 10, 2, 3), (np.int64(3), jnp.asarray(7), np.int32(2), 1.5), (0, 0, 1, 1)):
        for target, step in ((jnp.float32(0.5), jnp.int32(3)), (jnp.float32(0.9), jnp.int32(7))):
            run(Polynomial(start, stop, every, power), target, step)
    assert len(traces) == 1
    leaves = jax.tree.leaves(Polynomial(0, 10, 2))
    assert sorted(str(x.dtype) for x in leaves) == ["float32", "int32", "int32", "int32"]


def test_sweeps_over_schedules():
    """Mapped over the numbers of a schedule."""
    make = eqx.filter_vmap(lambda stop, power: Polynomial(0, stop, 1, power))
    schedules = make(jnp.asarray([4, 8]), jnp.asarray([1.0, 3.0]))
    found = eqx.filter_vmap(lambda s: s.sparsity(0.8, 2))(schedules)
    np.testing.assert_allclose(np.asarray(found), [0.4, 0.8 * (1 - 0.75**3)], rtol=1e-6)
    assert eqx.filter_vmap(lambda s: s.is_due(5))(schedules).tolist() == [False, True]


def test_scan_over_steps():
    def body(step, _):
        return step + 1, OneShot(3).is_due(step)

    _, due = jax.lax.scan(body, jnp.asarray(0), None, length=6)
    assert due.tolist() == [False, False, False, True, False, False]


def test_steps_of_other_integer_types():
    for step in (np.int64(3), np.uint8(3), jnp.asarray(3, jnp.uint32), jnp.asarray(3, jnp.int8)):
        assert bool(OneShot(3).is_due(step)) and bool(Polynomial(1, 3, 5).is_due(step))
        assert float(Polynomial(1, 3, 5).sparsity(0.5, step)) == 0.5


# Errors.

WHOLE = {
    "OneShot(step=...)": lambda x: OneShot(x),
    "Periodic(start=...)": lambda x: Periodic(x, 10, 1),
    "Periodic(stop=...)": lambda x: Periodic(0, x, 1),
    "Periodic(every=...)": lambda x: Periodic(0, 10, x),
    "Polynomial(start=...)": lambda x: Polynomial(x, 10, 1),
    "Polynomial(stop=...)": lambda x: Polynomial(0, x, 1),
    "Polynomial(every=...)": lambda x: Polynomial(0, 10, x),
}


@pytest.mark.own_message
@pytest.mark.parametrize("argument", WHOLE)
@pytest.mark.parametrize("value", [1.5, 2.0, "x", None, True, float("nan"), np.float32(3)])
def test_whole_numbers(argument, value):
    with pytest.raises(ValueError) as raised:
        WHOLE[argument](value)
    assert str(raised.value).startswith(f"`{argument}` must be a whole number. Got ")


@pytest.mark.own_message
@pytest.mark.parametrize("argument", WHOLE)
@pytest.mark.parametrize("value", [-1, np.int64(-7), jnp.asarray(-1)])
def test_negative_numbers(argument, value):
    least = 1 if "every" in argument else 0
    with pytest.raises(ValueError) as raised:
        WHOLE[argument](value)
    assert str(raised.value) == f"`{argument}` must be at least {least}. Got {int(value)}."


@pytest.mark.own_message
@pytest.mark.parametrize("argument", WHOLE)
@pytest.mark.parametrize("value", [2**31, 2**40, -(2**40)])
def test_numbers_that_no_step_can_reach(argument, value):
    with pytest.raises(ValueError) as raised:
        WHOLE[argument](value)
    assert f"`{argument}`" in str(raised.value) and str(value) in str(raised.value)


@pytest.mark.own_message
@pytest.mark.parametrize("name", ["Periodic", "Polynomial"])
def test_stop_before_start(name):
    make = {"Periodic": Periodic, "Polynomial": Polynomial}[name]
    with pytest.raises(ValueError) as raised:
        make(5, 3, 1)
    assert str(raised.value) == f"`{name}(stop=...)` must not be before start=5. Got 3."
    with pytest.raises(ValueError, match="every"):
        make(0, 3, 0)


@pytest.mark.own_message
@pytest.mark.parametrize("power", [0, -1, float("nan")])
def test_powers_must_be_positive(power):
    with pytest.raises(ValueError) as raised:
        Polynomial(0, 10, 1, power)
    assert str(raised.value) == f"`Polynomial(power=...)` must be positive. Got {power}."


@pytest.mark.own_message
@pytest.mark.parametrize("power", ["x", None, True, [3]])
def test_powers_must_be_numbers(power):
    with pytest.raises(ValueError, match=r"`Polynomial\(power=...\)` must be a number\. Got "):
        Polynomial(0, 10, 1, power)
