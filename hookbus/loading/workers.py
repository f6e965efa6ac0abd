"""Dataloader workers: how they start, what they know of the run, and what the matter is where they cannot start or die.

Workers start by forkserver where it would be fork: a run has threads, and a forked worker hangs on a lock that one of
them held. The first start makes the standard library's fork server, one process with two descriptors that stays until
this process ends; nothing else outlives an iterator that is exhausted or was given to `stop_loading`.
"""

from __future__ import annotations

__all__ = ("WorkerBatches", "release_workers", "start_loading", "stop_loading")

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch.multiprocessing
from torch.utils.data import DataLoader, IterableDataset

from hookbus.hub import MessageHub
from hookbus.loading.failures import check_importable, check_main_guard, explain_death, explain_failed_start, is_death
from hookbus.loading.seeding import SeededDataset, ShowDataset
from hookbus.worker_hub import WorkerStart

PRELOADED = ("torch", "hookbus.worker_hub")
"""What the fork server imports, so that its workers have it; each would take seconds to import torch by itself."""

_warned: WeakSet[DataLoader[Any]] = WeakSet()


def start_loading(loader: Iterable[Any], hub: MessageHub, warn: Callable[[str], object]) -> Iterator[Any]:
    """Return what `iter(loader)` gives, after starting the workers of a torch DataLoader as a run wants them.

    They start by forkserver unless the loader or the process asks for another way, and code in them finds a copy of `hub`
    to read. The loader is as before when this returns.

    Raises:
        DataLoaderError: the workers cannot be started.
    """
    if not isinstance(loader, DataLoader) or loader.num_workers == 0:
        return iter(loader)
    if loader.persistent_workers and loader._iterator is not None:
        return WorkerBatches(loader, iter(loader))  # its workers are there already
    method = _start_method(loader)
    check_main_guard()
    if method == "fork":
        _warn_of_fork(loader, warn)
    else:
        check_importable(_sent_parts(loader))
    return WorkerBatches(loader, _start_workers(loader, hub, method))


def stop_loading(batches: Iterator[Any]) -> None:
    """End the workers behind what `start_loading` gave, unless they persist; does nothing for other iterators."""
    if isinstance(batches, WorkerBatches):
        batches.close()


def release_workers(loader: Any) -> None:
    """End workers that persist from pass to pass; the loader starts new ones when it is asked again."""
    iterator = getattr(loader, "_iterator", None)
    if isinstance(loader, DataLoader) and iterator is not None:
        loader._iterator = None
        _shut_down(iterator)


class WorkerBatches:
    """The batches of a loader with workers; an iterator that says why where a worker died."""

    def __init__(self, loader: DataLoader[Any], iterator: Iterator[Any]) -> None:
        self._loader = loader
        self._iterator = iterator
        self._has_begun = False

    def __iter__(self) -> WorkerBatches:
        return self

    def __next__(self) -> Any:
        """Return the next batch.

        Raises:
            DataWorkerDied: a worker ended before its work was done.
        """
        try:
            batch = next(self._iterator)
        except RuntimeError as error:
            if not is_death(error):
                raise
            death = explain_death(error, getattr(self._iterator, "_workers", ()), has_begun=self._has_begun)
            self._forsake()
            raise death from error
        self._has_begun = True
        return batch

    def close(self) -> None:
        """End the workers and wait for them, unless they persist: then the loader keeps them for its next pass."""
        iterator, self._iterator = self._iterator, iter(())
        if not self._loader.persistent_workers:
            _shut_down(iterator)

    def _forsake(self) -> None:
        """End workers that are no longer complete; the loader will start new ones."""
        iterator, self._iterator = self._iterator, iter(())
        self._loader._iterator = None
        _shut_down(iterator)


def _shut_down(iterator: Any) -> None:
    """Do at once what torch does when the iterator is freed, which an exception in flight may put off."""
    shut_down = getattr(iterator, "_shutdown_workers", None)
    if shut_down is None:
        return
    shut_down()
    for queue in iterator._index_queues:
        feeder = getattr(queue, "_thread", None)
        if feeder is not None:  # told to end, and not waited for by torch
            feeder.join(timeout=5)


# --- starting ---------------------------------------------------------------------------------------------------------


def _start_method(loader: DataLoader[Any]) -> str:
    """Return how the workers of a loader are to start: as was chosen for it, else in the process's way if that is not fork."""
    chosen = loader.multiprocessing_context
    if chosen is not None:
        return str(chosen.get_start_method())
    available = torch.multiprocessing.get_all_start_methods()
    usual = torch.multiprocessing.get_start_method(allow_none=True) or available[0]  # the first one is the default
    return "forkserver" if usual == "fork" and "forkserver" in available else usual


def _warn_of_fork(loader: DataLoader[Any], warn: Callable[[str], object]) -> None:
    if loader in _warned:
        return
    _warned.add(loader)
    warn(
        f"the dataloader of {type(loader.dataset).__name__} starts its workers by fork, as its multiprocessing_context says: a "
        f"forked worker hangs where it needs a lock that a thread of this process held just then, and cannot use an "
        f"accelerator; with multiprocessing_context=None they start by forkserver"
    )


def _start_workers(loader: DataLoader[Any], hub: MessageHub, method: str) -> Iterator[Any]:
    context, initialise, dataset = loader.multiprocessing_context, loader.worker_init_fn, loader.dataset
    parts = _sent_parts(loader)
    with _preloading(method):
        try:
            if context is None:
                loader.multiprocessing_context = method
            loader.worker_init_fn = WorkerStart(hub.portable(), ShowDataset(initialise))
            if not isinstance(dataset, IterableDataset):
                object.__setattr__(loader, "dataset", SeededDataset(dataset))  # the loader forbids to change it
            return iter(loader)
        except Exception as error:
            explained = explain_failed_start(error, parts)
            if explained is None:
                raise
            raise explained from error
        finally:
            loader.worker_init_fn, loader.multiprocessing_context = initialise, context
            object.__setattr__(loader, "dataset", dataset)


def _sent_parts(loader: DataLoader[Any]) -> dict[str, object]:
    """Return what a worker receives of a loader; its sampler stays here."""
    return {"dataset": loader.dataset, "collate_fn": loader.collate_fn, "worker_init_fn": loader.worker_init_fn}


@contextmanager
def _preloading(method: str) -> Iterator[None]:
    """Have a fork server that is started here import torch, unless somebody has decided what it imports."""
    if method != "forkserver":
        yield
        return
    from multiprocessing import forkserver  # not for every platform

    default = ["__main__"]
    if vars(forkserver._forkserver)["_preload_modules"] != default:
        yield
        return
    forkserver.set_forkserver_preload([*default, *PRELOADED])
    try:
        yield
    finally:
        forkserver.set_forkserver_preload(default)
