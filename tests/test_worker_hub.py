"""The hub in other processes: dataloader workers, forked children and whoever unpickles one read a copy, and only read."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from hookbus import hub as hub_module
from hookbus._hub_copy import HISTORY_IN_COPY
from hookbus.errors import ReadOnlyHub
from hookbus.hub import MessageHub
from hookbus.loading import start_loading, stop_loading
from tests.loading_parts import Holder, Readers, as_list, forked, refusal, report_of_a_fork, what_is_known

forks = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")
with_threads = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 and later warn, and rightly

READING = {
    "get_current_instance",
    "get_info",
    "get_instance",
    "get_scalar",
    "live_names",
    "log_scalars",
    "portable",
    "runtime_info",
    "snapshot",
    "state_dict",
}
"""The public methods of a hub that do not write; `for_run`, which makes a new hub, is not asked of a copy."""


def make_hub(name: str = "digits") -> MessageHub:
    """Return a hub that knows two losses and an epoch."""
    hub = MessageHub(name)
    hub.update_scalar("train/loss", 3.0, count=2)
    hub.step = 7
    hub.update_scalar("train/loss", 2.0)
    hub.update_info("epoch", 5)
    return hub


@contextmanager
def live(hub: MessageHub) -> Iterator[MessageHub]:
    """Make the calling thread the training thread of a run."""
    hub.begin_run(threading.get_ident())
    try:
        yield hub
    finally:
        hub.end_run()


def sent(hub: MessageHub) -> MessageHub:
    """Return what another process unpickles."""
    arrived = pickle.loads(pickle.dumps(hub))
    assert isinstance(arrived, MessageHub)
    return arrived


# --- what a copy knows ------------------------------------------------------------------------------------------------


def test_an_unpickled_hub_knows_what_the_hub_knew() -> None:
    """Histories with their counts and steps, information and version arrive; also what a run has not committed yet."""
    with live(make_hub()) as hub:
        hub.update_info("iter", 8)
        arrived = sent(hub)

    assert arrived.name == "digits"
    assert arrived.get_scalar("train/loss").newest() == hub.get_scalar("train/loss").newest() == ([3.0, 2.0], [2, 1], [0, 7])
    assert arrived.runtime_info == {"epoch": 5, "iter": 8}
    assert list(arrived.log_scalars) == ["train/loss"]
    assert arrived.snapshot().get_info("iter") == 8
    assert arrived.state_dict() == hub.state_dict()


def test_a_copy_does_not_follow_the_hub() -> None:
    """It is as of when it was made, and says which version that was."""
    hub = make_hub()
    arrived = sent(hub)
    version = hub.snapshot().version
    hub.update_info("epoch", 6)

    assert arrived.get_info("epoch") == 5
    assert arrived.snapshot().version == version
    assert repr(arrived) == f"<MessageHub 'digits', a copy of version {version}>"


def test_a_copy_can_be_sent_on() -> None:
    """A process that received a copy may start processes of its own."""
    assert what_is_known(sent(sent(make_hub())))[:2] == ([3.0, 2.0], 5)


def test_a_copy_holds_the_newest_part_of_a_long_history() -> None:
    """A history of a million entries is not sent to every worker."""
    hub = MessageHub("digits")
    with live(hub):
        for step in range(HISTORY_IN_COPY + 10):
            hub.update_scalar("train/loss", float(step))

    assert sent(hub).get_scalar("train/loss").data[0] == [float(step) for step in range(10, HISTORY_IN_COPY + 10)]


class Gone:
    """A piece of information that cannot be unpickled, as if its class lay in a notebook."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return int, ("not a number",)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(lambda: 0, id="what pickle refuses"),
        pytest.param(threading.Lock(), id="a lock"),
        pytest.param({"nested": [torch.empty(1, device="meta")]}, id="a tensor on a device"),
        pytest.param([make_hub()], id="a hub"),
        pytest.param(Gone(), id="what the other process cannot build"),
    ],
)
def test_information_that_cannot_travel_is_left_out(value: Any) -> None:
    """It takes no other information along, and nothing fails."""
    hub = make_hub()
    hub.update_info("local", value)

    assert sent(hub).runtime_info == {"epoch": 5}


def test_information_with_a_hub_in_it_that_knows_itself_is_left_out() -> None:
    """A hub that knows an object that holds the hub does not send itself for ever."""
    hub = make_hub()
    hub.update_info("dataset", Holder(hub=hub))

    assert sent(hub).runtime_info == {"epoch": 5}


def test_a_deep_copy_of_what_holds_a_hub_shares_the_hub() -> None:
    """An averaged copy of a model goes on recording to the run of the model."""
    hub = make_hub()

    assert copy.deepcopy({"hub": hub})["hub"] is hub


# --- what a copy refuses ----------------------------------------------------------------------------------------------


def methods_that_do_not_read() -> list[str]:
    """Return every public method of a hub but those that read, so also one that is yet to be written."""
    public = [name for name, _ in inspect.getmembers(MessageHub, inspect.isroutine) if not name.startswith("_")]
    return [name for name in public if name not in READING | {"for_run"}]


@pytest.mark.parametrize("method", methods_that_do_not_read())
def test_a_copy_refuses_to_be_written_to_and_waited_for(method: str) -> None:
    """The error names method, hub and reason; what the copy knows stays as it is."""
    arrived = sent(make_hub())
    before = arrived.snapshot()

    with pytest.raises(
        ReadOnlyHub, match=rf"^{method}\('train/loss'\) on a copy of the message hub 'digits': .* process of its run"
    ):
        getattr(arrived, method)("train/loss", 1.0)
    assert arrived.snapshot() is before


def test_whoever_waits_for_a_copy_is_told_that_it_never_changes() -> None:
    """Waiting in a worker for the run would never end."""
    with pytest.raises(ReadOnlyHub, match="can be read and not waited for, as it never changes"):
        sent(make_hub()).wait_until_blocking(lambda seen: seen.get_info("epoch") == 6)


# --- in workers -------------------------------------------------------------------------------------------------------


def batches_of(loader: DataLoader[Any], hub: MessageHub) -> list[Any]:
    """Return every batch of a loader whose workers are started for the run of a hub."""
    batches = start_loading(loader, hub, lambda warning: None)
    try:
        return list(batches)
    finally:
        stop_loading(batches)


@with_threads
@pytest.mark.parametrize("context", ["forkserver", pytest.param("fork", marks=forks)])
def test_code_in_a_worker_finds_a_copy_of_the_hub_of_its_run(context: str) -> None:
    """By name and as the current one, on threads too; while the run writes on, the copy refuses."""
    dataset = Readers(2, run="digits")
    loader = DataLoader(dataset, num_workers=2, collate_fn=as_list, multiprocessing_context=context)
    with live(make_hub()) as hub:
        found = batches_of(loader, hub)

    is_current, on_a_thread, (losses, epoch, refused) = found[0][0]
    assert (is_current, on_a_thread, losses, epoch) == (True, "digits", [3.0, 2.0], 5)
    assert "a copy of the message hub 'digits'" in refused
    assert found[1] == found[0]


@with_threads
@pytest.mark.parametrize("context", ["forkserver", pytest.param("fork", marks=forks)])
def test_a_hub_that_a_dataset_holds_is_a_copy_in_its_workers(context: str) -> None:
    """However the workers start, nothing written there is silently lost."""
    with live(make_hub()) as hub:
        dataset = Holder(1, hub=hub)
        found = batches_of(DataLoader(dataset, num_workers=1, collate_fn=as_list, multiprocessing_context=context), hub)
        assert refusal(hub.update_info, "epoch", 6) == "", "the run itself goes on writing"

    losses, epoch, refused = found[0][0]
    assert (losses, epoch) == ([3.0, 2.0], 5)
    assert "a copy of the message hub 'digits'" in refused


@forks
@with_threads
def test_a_forked_child_reads_though_the_locks_were_held_when_it_was_forked() -> None:
    """The threads that held them do not exist in the child, so nobody would ever release them there."""
    with live(make_hub()) as hub, held(hub._lock, hub_module._live_lock, hub_module._hubs._lock):
        found = forked(report_of_a_fork, hub)

    is_found_by_name, (losses, epoch, refused), shown = found
    assert (is_found_by_name, losses, epoch) == (True, [3.0, 2.0], 5)
    assert "a copy" in refused
    assert "a copy" in shown


@contextmanager
def held(*locks: Any) -> Iterator[None]:
    """Have another thread hold locks."""
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        for lock in locks:
            lock.acquire()
        taken.set()
        release.wait()
        for lock in locks:
            lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        yield
    finally:
        release.set()
        thread.join()


def train_in_a_fork(hub: MessageHub, pipe: Any) -> None:
    """Write to a hub, in a run, and send what it knows then."""
    with live(hub):
        hub.update_info("epoch", 6)
    pipe.send(hub.get_info("epoch"))
    pipe.close()


@forks
@with_threads
def test_a_hub_without_a_run_is_no_copy_in_a_forked_child() -> None:
    """A process may prepare a hub and fork the one that trains."""
    hub = MessageHub.get_instance("prepared-before-a-fork")
    with held(hub._lock):
        assert forked(train_in_a_fork, hub) == 6
