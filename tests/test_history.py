"""The history of one scalar: what it keeps, what its views see, and what it costs."""

from __future__ import annotations

import copy
import math
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbus.errors import ConfigError
from hookbus.history import _LARGEST_CHUNK, HistoryBuffer


def make_history(*values: float, max_length: int = 1_000_000) -> HistoryBuffer:
    """Return a history into which values were recorded one by one."""
    history = HistoryBuffer(max_length=max_length)
    for value in values:
        history.update(value)
    return history


def same(left: list[float], right: list[float]) -> bool:
    """Return whether two lists hold the same numbers, NaN being the same as NaN."""
    return len(left) == len(right) and all(a == b or (a != a and b != b) for a, b in zip(left, right, strict=True))


@contextmanager
def registered(statistic: Callable[..., Any]) -> Iterator[None]:
    """Register a statistic for a while."""
    HistoryBuffer.register_statistics(statistic)
    try:
        yield
    finally:
        del HistoryBuffer._statistics[statistic.__name__]


def test_a_new_history_is_empty() -> None:
    """Nothing recorded reads as nothing, with a NaN for the mean."""
    history = HistoryBuffer()
    assert len(history) == 0
    assert history.data == ([], [])
    assert history.steps == []
    assert history.num_updates == 0
    assert math.isnan(history.mean())
    assert repr(history) == "HistoryBuffer(0 values)"


@pytest.mark.parametrize("name", ["max", "min", "current"])
def test_an_empty_history_has_no_greatest_least_or_newest_value(name: str) -> None:
    """Asking for one is an error that says why."""
    with pytest.raises(ValueError, match="the history is empty: nothing has been recorded yet"):
        HistoryBuffer().statistics(name)


def test_values_are_kept_in_order_with_their_counts_and_steps() -> None:
    """Each entry remembers how many samples it stands for and the step it belongs to."""
    history = HistoryBuffer()
    history.update(1.5)
    history.update(2.5, count=4)
    history.update(3.5, 2, step=70)
    assert history.data == ([1.5, 2.5, 3.5], [1, 4, 2])
    assert history.steps == [0, 1, 70]
    assert history.newest(2) == ([2.5, 3.5], [4, 2], [1, 70])
    assert repr(history) == "HistoryBuffer(3 values, newest 3.5)"


def test_a_history_may_begin_with_values() -> None:
    """Counts that are left out are 1."""
    assert HistoryBuffer([1.0, 2.0]).data == ([1.0, 2.0], [1, 1])
    assert HistoryBuffer([1.0, 2.0], [3, 4]).data == ([1.0, 2.0], [3, 4])
    assert HistoryBuffer([1.0, 2.0, 3.0], max_length=2).data == ([2.0, 3.0], [1, 1])


def test_the_mean_divides_sums_by_their_counts() -> None:
    """A value with a count is a sum over so many samples."""
    history = HistoryBuffer([10.0, 3.0, 5.0], [5, 1, 2])
    assert history.mean() == 18 / 8
    assert history.mean(2) == 8 / 3
    assert history.mean(1) == 2.5


def test_a_window_looks_at_the_newest_values_only() -> None:
    """A window wider than the history is all of it."""
    history = make_history(9.0, 1.0, 5.0, 3.0)
    assert (history.max(), history.max(3), history.max(1), history.max(99)) == (9.0, 5.0, 3.0, 9.0)
    assert (history.min(), history.min(2), history.min(1), history.min(99)) == (1.0, 3.0, 3.0, 1.0)
    assert (history.mean(), history.mean(2), history.mean(99)) == (4.5, 4.0, 4.5)
    assert history.current() == 3.0


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_of_nothing_is_refused(window: int) -> None:
    """A slice would quietly have meant all values."""
    with pytest.raises(ConfigError, match=f"window must be at least 1, got {window}"):
        make_history(1.0).mean(window)


def test_nan_and_infinity_are_recorded_as_they_are() -> None:
    """They come back from every column and every window."""
    history = make_history(1.0, math.inf, -math.inf, math.nan)
    values, _ = history.data
    assert same(values, [1.0, math.inf, -math.inf, math.nan])
    assert math.isnan(history.current())
    assert history.view().newest(3)[0][:2] == [math.inf, -math.inf]
    assert math.isnan(history.mean())


@pytest.mark.parametrize("values", [(math.nan, 1.0, 2.0), (1.0, math.nan, 2.0), (1.0, 2.0, math.nan)])
def test_the_extremes_are_nan_wherever_the_nan_stands(values: tuple[float, ...]) -> None:
    """What comes out depends on what was recorded, not on the order of it."""
    history = make_history(*values)
    assert math.isnan(history.max())
    assert math.isnan(history.min())


@pytest.mark.parametrize("value", ["1.5", None, [1.0], object()], ids=["text", "none", "list", "object"])
def test_what_is_no_number_is_refused_and_leaves_nothing(value: Any) -> None:
    """A refused value is as if it had never come."""
    history = make_history(1.0)
    with pytest.raises(TypeError, match="real number"):
        history.update(value)
    with pytest.raises(TypeError, match="integer"):
        history.update(2.0, 1.5)  # type: ignore[arg-type]
    assert history.data == ([1.0], [1])
    assert history.num_updates == 1
    history.update(3.0)
    assert history.data == ([1.0, 3.0], [1, 1])


@pytest.mark.parametrize("room", [0, 1, 64])
@pytest.mark.parametrize("place", [0, 5])
def test_many_values_of_which_one_is_no_number_leave_nothing(room: int, place: int) -> None:
    """Whether they fit into the storage or not; the text says what was wrong."""
    history = make_history(*range(64 - room))
    values: list[Any] = [1.0] * 10
    values[place] = None
    before = history.newest()
    with pytest.raises(TypeError, match="real number"):
        history.extend(values, [1] * 10, [0] * 10)
    with pytest.raises(TypeError, match="integer"):
        history.extend([1.0] * 10, values, [0] * 10)
    assert (history.newest(), history.num_updates) == (before, 64 - room)
    history.update(9.0, step=7)
    assert history.newest(1) == ([9.0], [1], [7])


def test_columns_of_different_lengths_are_refused() -> None:
    """A missing count or step would shift everything behind it."""
    history = make_history(1.0)
    with pytest.raises(ConfigError, match="values, counts and steps must be of one length, got 2, 1 and 2"):
        history.extend([1.0, 2.0], [1], [0, 1])
    with pytest.raises(ConfigError, match="got 1, 1 and 0"):
        history.view().extend([1.0], [1], [])
    with pytest.raises(ConfigError, match="got 1, 2 and 1"):
        HistoryBuffer([1.0], [1, 2])
    assert history.data == ([1.0], [1])


def test_a_history_that_keeps_nothing_is_refused() -> None:
    """At least the newest value is kept."""
    with pytest.raises(ConfigError, match="max_length must be at least 1, got 0"):
        HistoryBuffer(max_length=0)


@pytest.mark.parametrize("max_length", [1, 2, 63, 64, 65, 100])
def test_only_the_newest_values_are_kept(max_length: int) -> None:
    """The oldest go one by one, and the number of updates still counts them."""
    history = HistoryBuffer(max_length=max_length)
    for value in range(300):
        history.update(value)
        kept = [float(kept) for kept in range(max(0, value + 1 - max_length), value + 1)]
        assert history.data[0] == kept
        assert history.view().data[0] == kept
    assert len(history) == max_length
    assert history.num_updates == 300


def test_more_values_at_once_than_are_kept_leave_the_newest() -> None:
    """One large extension is like many small ones."""
    history = make_history(-1.0, max_length=10)
    history.extend([float(value) for value in range(1000)], [1] * 1000, list(range(1000)))
    assert history.newest() == ([float(value) for value in range(990, 1000)], [1] * 10, list(range(990, 1000)))
    history.update(5.0)
    assert history.data[0] == [*(float(value) for value in range(991, 1000)), 5.0]


def test_a_view_does_not_see_what_comes_later() -> None:
    """Neither values that fit into the shared storage nor those that move it."""
    history = make_history(0.0, 1.0)
    view = history.view()
    for value in range(2, 500):
        history.update(value)
    assert view.data == ([0.0, 1.0], [1, 1])
    assert view.num_updates == 2
    assert len(history) == 500


def test_what_is_recorded_into_a_view_stays_there() -> None:
    """It reaches neither the buffer behind it, nor its brothers, nor views of itself taken before."""
    history = make_history(0.0, 1.0)
    view, brother = history.view(), history.view()
    view.update(10.0, step=7)
    earlier = view.view()
    view.extend([11.0, 12.0], [2, 3], [8, 9])
    history.update(2.0)
    assert view.newest() == ([0.0, 1.0, 10.0, 11.0, 12.0], [1, 1, 1, 2, 3], [0, 1, 7, 8, 9])
    assert earlier.data[0] == [0.0, 1.0, 10.0]
    assert brother.data[0] == [0.0, 1.0]
    assert history.data[0] == [0.0, 1.0, 2.0]
    assert (view.max(4), view.min(4), view.current()) == (12.0, 1.0, 12.0)
    assert (view.mean(2), view.max(2)) == (23 / 5, 12.0)


def test_the_tail_of_a_view_counts_towards_what_is_kept() -> None:
    """Also when it alone is longer than that."""
    view = make_history(0.0, 1.0, 2.0, max_length=3).view()
    view.update(3.0)
    assert view.data[0] == [1.0, 2.0, 3.0]
    view.extend([4.0, 5.0, 6.0, 7.0], [1] * 4, [0] * 4)
    assert view.data[0] == [5.0, 6.0, 7.0]
    assert (len(view), view.max(), view.min(), view.num_updates) == (3, 7.0, 5.0, 8)
    assert view.view().data[0] == [5.0, 6.0, 7.0]
    assert view.newest(4)[0] == [5.0, 6.0, 7.0]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda history: pickle.loads(pickle.dumps(history))], ids=["copy", "pickle"]
)
def test_a_copy_goes_its_own_way(duplicate: Callable[[HistoryBuffer], HistoryBuffer]) -> None:
    """Copies share nothing, whether of a buffer or of a view with a tail."""
    history = make_history(1.0, 2.0)
    view = history.view()
    view.update(3.0)
    copies = duplicate(history), duplicate(view)
    for each in (history, view, *copies):
        each.update(9.0)
    assert [each.data[0] for each in copies] == [[1.0, 2.0, 9.0], [1.0, 2.0, 3.0, 9.0]]


def test_statistics_are_found_by_name() -> None:
    """Those that every buffer has, with their arguments."""
    history = make_history(1.0, 4.0, 2.0)
    assert history.statistics("mean", 2) == 3.0
    assert history.statistics("max", window=1) == 2.0
    assert history.statistics("min") == 1.0
    assert history.statistics("current") == 2.0


def test_a_registered_statistic_works_on_every_buffer() -> None:
    """It gets the buffer first and the arguments as given, and stays a function."""

    def spread(history: HistoryBuffer, window: int | None = None, *, scale: float = 1.0) -> float:
        return scale * (history.max(window) - history.min(window))

    with registered(spread):
        assert make_history(1.0, 4.0, 2.0).statistics("spread", 2, scale=0.5) == 1.0
        assert make_history(1.0, 9.0).view().statistics("spread") == 8.0
        with pytest.raises(ConfigError, match="a statistic named 'spread' is registered already"):
            HistoryBuffer.register_statistics(spread)


def test_an_unknown_statistic_is_refused_with_the_nearest_name() -> None:
    """The text tells what there is."""
    with pytest.raises(
        ConfigError, match=r"unknown statistic 'maen'; did you mean 'mean'\? valid choices: mean, max, min, current"
    ):
        make_history(1.0).statistics("maen")


def test_a_history_grows_without_moving_what_it_holds() -> None:
    """A hundred thousand values are some chunks that double in length up to a limit; none is ever replaced."""
    history = HistoryBuffer()
    seen: list[Any] = []
    for value in range(100_000):
        history.update(value)
        if len(history._chunks) > len(seen):
            seen.append(history._chunks[-1])
    lengths = [len(values) for values, _, _ in seen]
    assert lengths == [min(64 * 2**place, _LARGEST_CHUNK) for place in range(len(lengths))]
    assert sum(lengths) < 100_000 + _LARGEST_CHUNK
    assert all(chunk is before for chunk, before in zip(history._chunks, seen, strict=True))


@pytest.mark.parametrize("max_length", [1, 1000, 50_000])
@pytest.mark.parametrize("at_once", [1, 7, 20_000])
def test_a_full_history_takes_no_more_room(max_length: int, at_once: int) -> None:
    """Beyond what is kept there is less than the oldest chunk, and a newest one that is not full yet."""
    history = HistoryBuffer(max_length=max_length)
    for begin in range(0, 140_000, at_once):
        steps = range(begin, begin + at_once)
        if at_once == 1:
            history.update(float(begin))
        else:
            history.extend([float(step) for step in steps], [1] * at_once, steps)
        assert sum(len(values) for values, _, _ in history._chunks) < max_length + 2 * _LARGEST_CHUNK
    assert len(history) == max_length
    assert history.steps == list(range(history.num_updates - max_length, history.num_updates))


def test_views_share_the_storage() -> None:
    """A view costs the same whatever the length of the history."""
    history = HistoryBuffer(range(10_000))
    assert history.view()._chunks is history._chunks


Column = list[tuple[float, int, int]]
numbers = st.floats(allow_nan=True, allow_infinity=True)
counts = st.integers(1, 1000)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), max_length=st.sampled_from([1, 3, 64, 70, 1_000_000]), seed=st.integers(0, 2**32))
def test_a_history_and_its_views_behave_like_lists(data: st.DataObject, max_length: int, seed: int) -> None:
    """Recording into a buffer and into views taken at any moment is compared with plain lists, entry for entry."""
    chance = random.Random(seed)
    pairs: list[tuple[HistoryBuffer, Column]] = [(HistoryBuffer(max_length=max_length), [])]
    totals = [0]
    for _ in range(data.draw(st.integers(1, 25))):
        which = chance.randrange(len(pairs)) if chance.random() < 0.4 else 0
        history, model = pairs[which]
        action = chance.choice(["update", "extend", "view", "many"])
        if action == "view":
            pairs.append((history.view(), list(model)))
            totals.append(totals[which])
            continue
        if action == "update":
            rows = [(data.draw(numbers), data.draw(counts), history.num_updates)]
            history.update(*rows[0][:2])
        else:
            number = chance.randrange(150) if action == "many" else 2
            value = data.draw(numbers)
            rows = [(value, place + 1, chance.randrange(-5, 10**9)) for place in range(number)]
            history.extend([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
        model += rows
        totals[which] += len(rows)
        del model[: max(0, len(model) - max_length)]
    for (history, model), total in zip(pairs, totals, strict=True):
        assert_like(history, model, total)


def assert_like(history: HistoryBuffer, model: Column, total: int) -> None:
    """Compare everything that can be read from a history with the list of what it should hold."""
    values = [row[0] for row in model]
    assert same(history.data[0], values)
    assert history.data[1] == [row[1] for row in model]
    assert history.steps == [row[2] for row in model]
    assert (len(history), history.num_updates) == (len(model), total)
    for window in (None, 1, 2, 65):
        newest = model if window is None else model[-window:]
        assert same(history.newest(window)[0], [row[0] for row in newest])
        if not newest:
            continue
        kept = [row[0] for row in newest]
        has_nan = any(map(math.isnan, kept))
        extremes = [math.nan, math.nan] if has_nan else [max(kept), min(kept)]
        assert same([history.max(window), history.min(window), history.current()], [*extremes, kept[-1]])
        assert same([history.mean(window)], [sum(kept) / sum(row[1] for row in newest)])
