"""Which checkpoints go: only superseded periodic ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbus.checkpoint import CheckpointInfo, Retention
from hookbus.checkpoint.retention import GROUPS, groups_of, superseded
from hookbus.errors import ConfigError
from tests.checkpoint.builders import make_store, save_plain


def make_info(name: str, step: int, role: str = "periodic", groups: Sequence[str] = ()) -> CheckpointInfo:
    """Return the manifest of a checkpoint that need not exist."""
    facts = {GROUPS: [*groups]} if groups else {}
    return CheckpointInfo(name=name, path=Path(name), epoch=step, iter=step, role=role, facts=facts)


any_infos = st.lists(
    st.tuples(st.integers(0, 50), st.sampled_from(["periodic", "periodic", "best", "last"])), max_size=12
).map(lambda items: [make_info(f"c{index}", step, role) for index, (step, role) in enumerate(items)])  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(any_infos, st.integers(1, 4), st.sets(st.integers(0, 11).map(lambda index: f"c{index}"), max_size=3))
def test_only_superseded_periodic_checkpoints_are_named(infos: list[CheckpointInfo], keep: int, protected: set[str]) -> None:
    """The newest `keep` periodic ones, other roles and the protected stay; what goes is older than what is kept by number."""
    by_name = {info.name: info for info in infos}
    going = Retention(keep).superseded(infos, protected=protected)
    periodic = [info for info in infos if info.role == "periodic"]
    staying = [info for info in periodic if info.name not in going]
    assert len(set(going)) == len(going)
    assert all(by_name[name].role == "periodic" and name not in protected for name in going)
    assert len(staying) >= min(keep, len(periodic))
    assert len([info for info in staying if info.name not in protected]) <= keep
    assert not periodic or max(periodic, key=lambda info: info.step).name not in going
    assert all(by_name[name].step < info.step for name in going for info in staying if info.name not in protected)
    assert Retention(keep).superseded([info for info in infos if info.name not in going], protected=protected) == []


@pytest.mark.parametrize("keep", [None, -1])
def test_without_a_limit_nothing_goes(keep: int | None) -> None:
    """The default keeps every checkpoint."""
    assert Retention(keep).superseded([make_info("a", 1), make_info("b", 2)]) == []
    assert Retention() == Retention(None)


@pytest.mark.parametrize("keep", [0, -2, True, 1.0, "2"])
def test_a_limit_that_makes_no_sense_is_refused(keep: int) -> None:
    """Keeping none would delete the only one; the message says what is allowed."""
    with pytest.raises(ConfigError, match="max_keep must be"):
        Retention(keep)


def test_checkpoints_go_after_the_newer_one_is_committed(tmp_path: Path) -> None:
    """Used as the run uses it, the store holds the newest two and the best one; a damaged one is neither counted nor touched."""
    store = make_store(tmp_path)
    save_plain(store, "best", 1, role="best")
    for step in range(1, 6):
        save_plain(store, f"epoch_{step}", step)
        if step == 3:
            (store.directory / "epoch_3" / "manifest.json").write_text("{}")
        for name in Retention(2).superseded(store.list(), protected={f"epoch_{step}"}):
            store.remove(name)
    assert [info.name for info in store.list()] == ["best", "epoch_4", "epoch_5"]
    assert list(store.damaged()) == ["epoch_3"]


def test_a_commit_below_the_highest_step_stays(tmp_path: Path) -> None:
    """A run resumed from an older step may protect what it has just written."""
    infos = [make_info("epoch_9", 9), make_info("epoch_4", 4), make_info("epoch_3", 3)]
    assert Retention(1).superseded(infos, protected={"epoch_4"}) == ["epoch_3"]


# --- groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "limits", "going"),
    [
        ("a", {"a": 1}, ["a1"]),  # those that b shares stay as long as nobody knows how many it keeps
        ("a", {"a": 1, "b": 1}, ["a1", "ab2"]),
        ("a", {"a": 1, "b": 2}, ["a1"]),
        ("a", {"a": 1, "b": -1}, ["a1"]),
        ("a", {"a": 2, "b": 1}, ["a1"]),
        ("b", {"a": 1, "b": 1}, ["ab2"]),
        ("b", {"a": 3, "b": 1}, []),
        (None, {"a": 1, "b": 1, None: 1}, ["mine0"]),
        (None, {None: -1}, []),
    ],
)
def test_each_group_counts_its_own(group: str | None, limits: dict[str | None, int], going: list[str]) -> None:
    """What two groups share goes when both have enough newer ones; what somebody saved by hand belongs to none."""
    infos = [
        make_info("mine0", 0),
        make_info("a1", 1, groups=["a"]),
        make_info("ab2", 2, groups=["a", "b"]),
        make_info("best3", 3, role="best"),
        make_info("a3", 3, groups=["a"]),
        make_info("b4", 4, groups=["b"]),
        make_info("mine5", 5),
    ]
    assert superseded(infos, group, limits) == going


any_grouped = st.lists(
    st.tuples(st.integers(0, 20), st.sampled_from(["periodic", "periodic", "best"]), st.sets(st.sampled_from("abc"))), max_size=10
).map(lambda items: [make_info(f"c{index}", step, role, sorted(groups)) for index, (step, role, groups) in enumerate(items)])


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(any_grouped, st.dictionaries(st.sampled_from("abc"), st.sampled_from([-1, 1, 2]), min_size=1), st.data())
def test_no_group_loses_what_it_keeps(infos: list[CheckpointInfo], limits: dict[str | None, int], data: st.DataObject) -> None:
    """Whoever commits, the newest of every group stay, and all of a group without a limit."""
    group = data.draw(st.sampled_from(sorted(limits, key=str)))
    going = superseded(infos, group, limits)
    for info in (info for info in infos if info.name in going):
        assert group in groups_of(info)
        for owner in groups_of(info):
            periodic = (each for each in infos if owner in groups_of(each) and each.role == "periodic")
            assert limits.get(owner, -1) != -1
            assert info not in sorted(periodic, key=lambda each: each.step)[-limits[owner] :]
