"""Datasets and functions that dataloader workers can import, and what their workers report."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from hookbus.errors import ReadOnlyHub
from hookbus.hub import MessageHub


class Numbers(Dataset[int]):
    """The numbers from 0 to `length`, beside whatever attributes a test gives it."""

    def __init__(self, length: int = 8, **attributes: Any) -> None:
        self.length = length
        vars(self).update(attributes)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


class Stream(IterableDataset[int]):
    """The numbers from 0 to 8, each from one worker."""

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        yield from range(8) if worker is None else range(worker.id, 8, worker.num_workers)


class Processes(Numbers):
    """Says for each index which process it was read in, and which process started that one."""

    def __getitem__(self, index: int) -> Any:
        return os.getpid(), os.getppid()


class Mortal(Numbers):
    """Ends its worker when it comes to the number 4."""

    def __getitem__(self, index: int) -> int:
        if index == 4 and self.ending == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        elif index == 4:
            os._exit(3)
        return index

    ending: str


class Readers(Numbers):
    """Reports what code in a worker finds out about the run of a given name, and whether it may write."""

    run: str

    def __getitem__(self, index: int) -> Any:
        named, current = MessageHub.get_instance(self.run), MessageHub.get_current_instance()
        return named is current, found_on_a_thread(), what_is_known(named)


class Holder(Numbers):
    """Holds a hub and reports what it knows."""

    hub: MessageHub

    def __getitem__(self, index: int) -> Any:
        return what_is_known(self.hub)


class Handles(Numbers):
    """Leaves its `handle` behind when it is sent to a worker."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "handle"}


def found_on_a_thread() -> str:
    """Return the name of the hub that a thread without any context finds as the current one."""
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(MessageHub.get_current_instance().name))
    thread.start()
    thread.join()
    return found[0]


def what_is_known(hub: MessageHub) -> tuple[list[float], Any, str]:
    """Return the losses and the epoch that a hub knows, and what it says to somebody who writes."""
    return hub.get_scalar("train/loss").data[0], hub.get_info("epoch"), refusal(hub.update_scalar, "train/loss", 0.0)


def refusal(write: Callable[..., object], *arguments: Any) -> str:
    """Return what a copy of a hub says to somebody who writes; empty if nothing."""
    try:
        write(*arguments)
    except ReadOnlyHub as error:
        return str(error)
    return ""


def as_list(batch: list[Any]) -> list[Any]:
    """Collate by doing nothing."""
    return batch


def doubled(batch: list[int]) -> torch.Tensor:
    """Collate into a tensor of the doubles."""
    return 2 * torch.tensor(batch)


def broken(batch: list[Any]) -> Any:
    """Collate by failing."""
    raise TypeError("this batch does not fit")


def note_the_hub(worker_id: int) -> None:
    """Initialise a worker: put down, where its dataset is, what the current hub is called."""
    worker = get_worker_info()
    assert worker is not None
    assert isinstance(worker.dataset, Lengths)
    worker.dataset.length = len(MessageHub.get_current_instance().name)


class Lengths(Numbers):
    """Reports its length as its items."""

    def __getitem__(self, index: int) -> int:
        return self.length


def report_of_a_fork(hub: MessageHub, pipe: Any) -> None:
    """Send what a forked child finds, through a pipe."""
    found = MessageHub.get_instance(hub.name)
    pipe.send((found is hub, what_is_known(hub), repr(hub)))
    pipe.close()


def forked(function: Callable[..., None], *arguments: Any) -> Any:
    """Return what a function, called in a forked child, sends through the pipe that it is given last."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    child = fork.Process(target=function, args=(*arguments, there))
    child.start()
    there.close()
    try:
        return here.recv() if here.poll(20) else "nothing: the child hangs"
    finally:
        child.kill()
        child.join()
        here.close()
