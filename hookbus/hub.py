"""What a run knows about itself, readable from anywhere: other threads, request handlers, dashboards.

During a run there is one writer at a time: the training thread, or the awaited handler that it waits for; both read
what they wrote. Updates from anywhere else go through an inbox. After each publish that wrote, the training thread
commits one version by swapping one reference. So readers take no lock, never hold up the writer, and never see half
an update. The lock is between the training thread and that handler, because the thread also serves its mailbox
while it waits. Without a run, each update is committed at once, under the lock.
"""

from __future__ import annotations

__all__ = ("HubCopy", "MessageHub", "Snapshot")

import os
import threading
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from typing import Any, TypeVar

from hookbus._current import current_hub, current_writing
from hookbus._hub_copy import HubState, Unwritable
from hookbus._named import NamedInstances, check_name
from hookbus._scalars import DeviceScalars, as_number, on_device
from hookbus._snapshot import INFO, MISSING, Entry, Snapshot, apply_info, apply_scalars
from hookbus._waiting import Versions, Waiters, wait_blocking, wait_until
from hookbus.errors import ConfigError, RunAlreadyLive, RunEnded, WouldDeadlock
from hookbus.history import HistoryBuffer
from hookbus.types import Scalar

T = TypeVar("T")

FOLD_AFTER = 512
"""Log entries after which the writer folds; bounds what a reader has to fold privately."""
HISTORY_IN_CHECKPOINT = 10_000
"""Newest entries per key that go into a checkpoint."""


class MessageHub:
    """The shared knowledge of one run: scalars with their history, and pieces of information.

    Raises:
        InvalidName: `name` may not name a hub.
    """

    def __init__(self, name: str = "hookbus") -> None:
        self.name = check_name(name, "the name of a message hub")
        self.step = 0
        """The training iteration that recorded scalars belong to; kept by the loop."""
        self.dirty = False
        """Whether something waits to be committed; the bus looks at it after each publish."""
        self.ended = False
        """Whether the newest run of this hub is over."""
        self.waiters = Waiters()
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._is_taken = False
        self._info: dict[str, Any] = {}
        self._buffers: dict[str, HistoryBuffer] = {}
        self._not_resumed: set[str] = set()
        self._log: list[Entry] = []
        self._inbox: deque[list[Entry]] = deque()
        self._on_device = DeviceScalars()
        self._awaits_device = False
        self._groups_of_owner = 0
        self._landed: list[Entry] | None = None
        """Folded entries that `take_landed` has not given yet; None until somebody wants them."""
        self._told = 0
        """How many entries of the log it has given."""
        self._committed = Snapshot(0, {}, {}, self._log, 0)

    def __repr__(self) -> str:
        state = "live" if self._owner is not None else "ended" if self.ended else "idle"
        return f"<MessageHub {self.name!r}, {state}, version {self._committed.version}>"

    def __reduce__(self) -> tuple[Callable[[HubState], MessageHub], tuple[HubState]]:
        """Pickle what is known by now; what is unpickled can be read and nothing else, see `HubCopy`."""
        return HubCopy.of, (self.portable(),)

    def portable(self) -> HubState:
        """Return what another process gets to know: the newest part of each history, and information that can be pickled."""
        return HubState.of(self.name, self._visible(), without=MessageHub)

    def __deepcopy__(self, memo: object) -> MessageHub:
        """Return the hub itself, which a copy of a model shares with the model."""
        return self

    # --- finding hubs -------------------------------------------------------------------------------------------------

    @classmethod
    def get_instance(cls, name: str) -> MessageHub:
        """Return the hub of that name; it is made, and held for the run to come, where there is none."""
        return _hubs.get(check_name(name, "the name of a message hub"), lambda: cls(name))

    @classmethod
    def get_current_instance(cls) -> MessageHub:
        """Return the hub of the run whose code is executing, else of the only live run.

        Raises:
            RunEnded: no run is live, or several are and none of them is executing this code.
        """
        current = current_hub.get()
        if current is not None:
            return current
        with _live_lock:
            live = dict(_live)
        if len(live) == 1:
            return next(iter(live.values()))
        which = ", ".join(sorted(live)) or "none"
        msg = f"no run is executing this code, and the live runs are: {which}; use MessageHub.get_instance(name)"
        raise RunEnded(msg)

    @classmethod
    def live_names(cls) -> list[str]:
        """Return the names of the live runs of this process."""
        with _live_lock:
            return sorted(_live)

    @classmethod
    def for_run(cls, name: str) -> MessageHub:
        """Return the hub for a new run of that name: one prepared for it, or a fresh one. No other run will get it."""
        hub = _hubs.adopt(
            check_name(name, "experiment_name"),
            lambda: cls(name),
            is_free=lambda hub: not hub._is_taken,
            is_live=lambda hub: hub._owner is not None,
        )
        hub._is_taken = True
        return hub

    # --- recording ----------------------------------------------------------------------------------------------------

    def update_scalar(self, key: str, value: Scalar, count: int = 1, resumed: bool = True) -> None:
        """Append a value to the history of `key`; with `count=k` the value stands for a sum over `k` samples.

        A tensor on a device is copied at once and read when it has reached the host; this never waits for the device.
        `resumed=False` keeps the key out of checkpoints.

        Raises:
            ConfigError: the value is not one number.
        """
        if not isinstance(count, int) or count < 1:
            msg = f"count must be a whole number of at least 1, got {count!r} for {key!r}"
            raise ConfigError(msg)
        if not resumed or self._not_resumed:
            self._remember_resumed(key, resumed)
        if type(value) is not float:
            if on_device(value):
                self._await_device(key, value, count)
                return
            value = as_number(key, value)
        if get_ident() == self._owner and not self._groups_of_owner:  # the hot path, without a further call
            self._log.append((key, value, count, self.step))
            self.dirty = True
        else:
            self._write([(key, value, count, self.step)])

    def update_scalars(self, values: Mapping[str, Scalar]) -> None:
        """Append one value to each of several histories; they appear in one version.

        Raises:
            ConfigError: a value is not one number.
        """
        step = self.step
        entries: list[Entry] = []
        awaited: list[tuple[str, Scalar]] = []
        for key, value in values.items():
            if type(value) is float:
                entries.append((key, value, 1, step))
            elif on_device(value):
                awaited.append((key, value))
            else:
                entries.append((key, as_number(key, value), 1, step))
        for key, value in awaited:
            self._await_device(key, value, 1)
        if entries:
            self._write(entries)

    def update_info(self, key: str, value: Any, resumed: bool = True) -> None:
        """Set a piece of information; the value must not be changed afterwards."""
        if not resumed or self._not_resumed:
            self._remember_resumed(key, resumed)
        if get_ident() == self._owner and not self._groups_of_owner:  # the hot path, without a further call
            self._log.append((key, value, INFO, self.step))
            self.dirty = True
        else:
            self._write([(key, value, INFO, self.step)])

    def update_info_dict(self, values: Mapping[str, Any], resumed: bool = True) -> None:
        """Set several pieces of information; they appear in one version."""
        for key in values:
            self._remember_resumed(key, resumed)
        self._write([(key, value, INFO, self.step) for key, value in values.items()])

    def pop_info(self, key: str, default: Any = None) -> Any:
        """Remove a piece of information and return it, or `default` where there was none."""
        value = self.get_info(key, default)
        self._write([(key, MISSING, INFO, self.step)])
        return value

    @contextmanager
    def update(self) -> Iterator[MessageHub]:
        """Group several updates into one version, which appears when the block ends well."""
        group = _Group(self, _group.get())
        by_owner = get_ident() == self._owner
        self._groups_of_owner += by_owner
        token = _group.set(group)
        try:
            yield self
        finally:
            _group.reset(token)
            self._groups_of_owner -= by_owner
            entries = group.close()
        if entries:
            self._write(entries)

    def _remember_resumed(self, key: str, resumed: bool) -> None:
        if not resumed:
            self._not_resumed.add(key)
        elif key in self._not_resumed:
            self._not_resumed.discard(key)

    def _await_device(self, key: str, value: Scalar, count: int) -> None:
        self._on_device.add(key, value, count, self.step)
        self._awaits_device = self.dirty = True

    def _write(self, entries: list[Entry]) -> None:
        """Take entries over, all in one version."""
        if get_ident() == self._owner and not self._groups_of_owner:  # the hot path
            self._log.extend(entries)
            self.dirty = True
            return
        group = _group.get()
        while group is not None:
            if group.hub is self and group.add(entries):
                return
            group = group.outer
        if self._owner is not None and self._is_writer():
            with self._lock:
                self._log.extend(entries)
            self.dirty = True
            return
        self._inbox.append(entries)
        if self._owner is None:
            with self._lock:
                if self._owner is None:
                    self.commit()
                    return
        self.dirty = True

    def _is_writer(self) -> bool:
        if get_ident() == self._owner:
            return True
        writing = current_writing.get()
        return writing is not None and writing.hub is self

    # --- committing: the writer's side --------------------------------------------------------------------------------

    def commit(self, *, fold: bool = False) -> None:
        """Make everything written so far visible as one version; during a run only its thread does."""
        if get_ident() == self._owner:
            self.dirty = False  # before looking: what arrives from here on is for the next commit
            log, previous = self._log, self._committed
            length = len(log)
            if log is previous._log and length < FOLD_AFTER and not (fold or self._inbox or self._awaits_device):
                # Nothing but a longer log; the lock is for those who exchange it.
                self._committed = Snapshot(previous.version + 1, previous._info, previous._buffers, log, length)
                if self.waiters.asking:
                    self.waiters.notify()
                return
        with self._lock:
            if self._owner is None or get_ident() == self._owner:
                self._commit(fold=fold)

    def _commit(self, *, fold: bool) -> None:
        self.dirty = False  # before looking, as above
        while self._inbox:
            self._log.extend(self._inbox.popleft())
        if self._awaits_device:
            self._receive(wait=False)
        log, previous = self._log, self._committed
        if not fold and len(log) < FOLD_AFTER and log is previous._log:
            info, buffers = previous._info, previous._buffers
        else:
            info, buffers = self._fold()
            log = self._log
        self._committed = Snapshot(previous.version + 1, info, buffers, log, len(log))
        if self.waiters.asking:
            self.waiters.notify()

    def flush(self) -> None:
        """Wait for the values that are still on a device, and commit; for the writer only."""
        with self._lock:
            self._receive(wait=True)
            self.commit(fold=len(self._log) > FOLD_AFTER // 8)  # whoever flushes is about to read, and would fold, too

    def _receive(self, *, wait: bool) -> None:
        self._awaits_device = False  # before looking, as above
        if wait or self._on_device.is_due():
            self._on_device.send()
        for key, value, count, step in self._on_device.land(wait=wait):
            self._log.append((key, value, count, step))
        if self._on_device:
            self._awaits_device = self.dirty = True  # look again after the next publish

    def take_landed(self) -> list[Entry]:
        """Return what was written and is on the host since the last call, nothing at the first one; for the writer only."""
        with self._lock:
            landed, self._landed = self._landed, []
            told, self._told = self._told, len(self._log)
            return [] if landed is None else landed + self._log[told:]

    def _fold(self) -> tuple[dict[str, Any], dict[str, HistoryBuffer]]:
        """Fold the log into the writer's own state; return copies of it that readers may keep."""
        log, self._log = self._log, []  # readers of older versions keep the old one
        if self._landed is not None:
            self._landed += log[self._told :]
            self._told = 0
        apply_info(self._info, log)
        apply_scalars(self._buffers, log)
        return dict(self._info), {key: buffer.view() for key, buffer in self._buffers.items()}

    # --- reading ------------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return the newest committed version; never waits, from any thread."""
        return self._committed

    def _visible(self) -> Snapshot:
        """Return what the caller may see: the writer its own writes too, everybody else what is committed."""
        if get_ident() == self._owner:
            return self._uncommitted() if self.dirty else self._committed
        if self._owner is not None and self._is_writer():
            with self._lock:
                return self._uncommitted()
        return self._committed

    def _uncommitted(self) -> Snapshot:
        committed = self._committed
        return Snapshot(committed.version, committed._info, committed._buffers, self._log, len(self._log))

    def get_scalar(self, key: str) -> HistoryBuffer:
        """Return the history of a scalar as it is now.

        Raises:
            MetricNotFound: nothing was recorded under that key.
        """
        return self._visible().get_scalar(key)

    def get_info(self, key: str, default: Any = None) -> Any:
        """Return a piece of information, or `default` where there is none."""
        return self._visible().get_info(key, default)

    @property
    def log_scalars(self) -> dict[str, HistoryBuffer]:
        """The history of every scalar by its key."""
        return self._visible().log_scalars

    @property
    def runtime_info(self) -> dict[str, Any]:
        """Every piece of information by its key."""
        return self._visible().runtime_info

    # --- waiting ------------------------------------------------------------------------------------------------------

    async def wait_until(self, predicate: Callable[[Snapshot], T]) -> T:
        """Wait until `predicate(snapshot)` is true and return what it returned; works on any event loop.

        Raises:
            RunEnded: the run ended before it became true.
        """
        return await wait_until(self, predicate)

    def watch(self, *keys: str) -> Versions:
        """Yield the newest version whenever one of `keys` (by default anything) was written, until the run ends.

        Versions that come while the reader is busy are skipped, so a slow reader holds nobody up.
        """
        return Versions(self, keys)

    def wait_until_blocking(self, predicate: Callable[[Snapshot], T], timeout: float | None = None) -> T:
        """Wait on a thread until `predicate(snapshot)` is true and return what it returned.

        Raises:
            RunEnded: the run ended before it became true.
            TimeoutError: `timeout` seconds passed.
            WouldDeadlock: the waiting thread is the one that keeps the hub.
        """
        if get_ident() == self._owner:
            value = predicate(self._visible())
            if value:
                return value
            msg = f"the training thread waits for the message hub {self.name!r}, which only itself writes to"
            raise WouldDeadlock(msg)
        return wait_blocking(self, predicate, timeout)

    # --- the run's side -----------------------------------------------------------------------------------------------

    def begin_run(self, owner: int) -> None:
        """Make the thread `owner` the writer.

        Raises:
            RunAlreadyLive: another run of this name is live.
        """
        with _live_lock:
            if self.name in _live:
                msg = f"a run named {self.name!r} is live in this process; give each live run its own experiment_name"
                raise RunAlreadyLive(msg)
            _live[self.name] = self
        _hubs.register(self.name, self)
        with self._lock:
            self._owner, self._is_taken, self.ended = owner, True, False

    def end_run(self) -> None:
        """Commit what is left, wake everybody who waits, and let updates commit at once again."""
        try:
            self.flush()
        except BaseException:
            self._on_device = DeviceScalars()  # a broken device gives nothing back, however often it is asked
            raise
        finally:
            with self._lock:
                self._owner = None
                self.commit()  # what other threads wrote meanwhile
                self.ended = True  # after the last version: who sees this has that in reach
                self.waiters.notify()
            with _live_lock:
                if _live.get(self.name) is self:
                    del _live[self.name]

    def state_dict(self) -> dict[str, Any]:
        """Return what goes into a checkpoint: information, and the newest part of each history."""
        seen = self._visible()
        kept = {key: buffer for key, buffer in seen.log_scalars.items() if key not in self._not_resumed}
        scalars = {key: buffer.newest(HISTORY_IN_CHECKPOINT) for key, buffer in kept.items()}
        info = {key: deepcopy(value) for key, value in seen.runtime_info.items() if key not in self._not_resumed}
        return {"log_scalars": scalars, "runtime_info": info}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state; keys that it does not hold stay as they are.

        Raises:
            ConfigError: it is not a state of a message hub.
        """
        missing = {"log_scalars", "runtime_info"} - state_dict.keys()
        if missing:
            msg = f"not the state of a message hub: it lacks {', '.join(sorted(missing))}"
            raise ConfigError(msg)
        loaded = {key: _restored(key, columns) for key, columns in state_dict["log_scalars"].items()}
        with self._lock:
            self._fold()
            self._buffers.update(loaded)
            self._info.update(state_dict["runtime_info"])
            self.commit()


class _Group:
    """What one `with hub.update():` holds back."""

    def __init__(self, hub: MessageHub, outer: _Group | None) -> None:
        self.hub = hub
        self.outer = outer
        self._lock = threading.Lock()
        self._entries: list[Entry] | None = []

    def add(self, entries: list[Entry]) -> bool:
        """Hold entries back; False if the block is over, which a task that it started may outlive."""
        with self._lock:
            if self._entries is not None:
                self._entries += entries
            return self._entries is not None

    def close(self) -> list[Entry]:
        """Return what was held back."""
        with self._lock:
            entries, self._entries = self._entries, None
            return entries or []


def _restored(key: str, columns: tuple[list[float], list[int], list[int]]) -> HistoryBuffer:
    buffer = HistoryBuffer()
    try:
        values, counts, steps = columns
        buffer.extend(values, counts, steps)
    except (TypeError, ValueError) as error:
        msg = f"not the history of a scalar in the state of a message hub: {key!r}: {error}"
        raise ConfigError(msg) from error
    return buffer


class HubCopy(Unwritable, MessageHub):
    """What the hub of a run is in other processes: readable as of the moment it was copied; anything else raises."""

    def __init__(self, name: str, snapshot: Snapshot) -> None:
        super().__init__(name)
        self._committed = snapshot

    def __repr__(self) -> str:
        return f"<MessageHub {self.name!r}, a copy of version {self._committed.version}>"

    @classmethod
    def of(cls, state: HubState) -> HubCopy:
        """Return a copy of the hub that a state was taken from."""
        return cls(state.name, state.restored())

    def stand_in(self) -> None:
        """Be the hub that everybody in this process finds, by name or as the current one."""
        with _live_lock:
            _live.clear()
            _live[self.name] = self
        _hubs.register(self.name, self)
        current_hub.set(self)


def _after_fork() -> None:
    """Leave a forked child no lock that a thread of its parent held, and copies of the runs, which go on in the parent."""
    global _live_lock
    _live_lock = threading.Lock()
    _hubs.renew_lock()
    for hub in _hubs.known():
        hub._lock = threading.RLock()
    for hub in _live.values():
        copy = HubCopy(hub.name, hub._committed)
        hub.__class__ = HubCopy  # whoever holds the hub, such as a dataset, now holds a copy
        vars(hub).update(vars(copy))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_group: ContextVar[_Group | None] = ContextVar("hookbus_group", default=None)

_hubs: NamedInstances[MessageHub] = NamedInstances()
_live: dict[str, MessageHub] = {}
_live_lock = threading.Lock()
