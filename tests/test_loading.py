"""Dataloader workers: how they start, that nothing else changes, what ends with them, and what is said where they fail."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from torch.utils.data import dataloader as torch_dataloader

from hookbus.errors import DataLoaderError, DataWorkerDied
from hookbus.hub import MessageHub
from hookbus.loading import start_loading, stop_loading
from hookbus.loading import workers as loading
from tests.loading_parts import Handles, Lengths, Mortal, Numbers, Processes, Stream, as_list, broken, doubled, note_the_hub

with_threads = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 and later warn, and rightly
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows knows only spawn")


def begin(loader: Any, warn: Callable[[str], object] = pytest.fail) -> Any:
    """Start to load for a run called `digits`."""
    return start_loading(loader, MessageHub("digits"), warn)


def batches_of(loader: Any) -> list[Any]:
    """Return what one pass over a loader gives."""
    batches = begin(loader)
    try:
        return list(batches)
    finally:
        stop_loading(batches)


# --- starting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", [[1, 2], range(2), DataLoader(Numbers())], ids=["a list", "a range", "no workers"])
def test_a_loader_without_workers_is_just_iterated(loader: Any) -> None:
    """What comes back is the loader's own iterator, which nothing stands in front of."""
    batches = begin(loader)

    assert type(batches) is type(iter(loader))
    stop_loading(batches)
    assert next(batches) is not None, "to stop it is nobody's business but the loader's"


@posix
def test_workers_start_by_forkserver_and_the_loader_stays_the_users() -> None:
    """Workers are children of the fork server; afterwards the loader and what a fork server imports are as they were."""
    loader = DataLoader(Processes(4), num_workers=2, collate_fn=as_list)
    imported = list(vars(forkserver._forkserver)["_preload_modules"])

    found = batches_of(loader)

    assert {parent for [(_, parent)] in found} == {vars(forkserver._forkserver)["_forkserver_pid"]}
    assert (loader.multiprocessing_context, loader.worker_init_fn) == (None, None)
    assert vars(forkserver._forkserver)["_preload_modules"] == imported


@posix
@with_threads
@pytest.mark.parametrize(
    ("chosen", "usual", "method"),
    [
        (None, None, "forkserver"),
        (None, "fork", "forkserver"),
        (None, "spawn", "spawn"),
        (None, "forkserver", "forkserver"),
        ("fork", None, "fork"),
        ("spawn", None, "spawn"),
        ("forkserver", "spawn", "forkserver"),
    ],
)
def test_the_way_to_start_is_what_was_chosen_and_never_fork_by_accident(
    chosen: str | None, usual: str | None, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader's own choice counts, then that of the process; a process that has chosen nothing, or fork, is not followed."""
    context = multiprocessing.get_context(usual) if usual else None
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", context)
    loader = DataLoader(Numbers(), num_workers=1, multiprocessing_context=chosen)

    assert loading._start_method(loader) == method


@posix
@with_threads
def test_a_fork_that_the_user_asked_for_is_carried_out_and_warned_about_once() -> None:
    """The warning names the dataset and the remedy; the second pass over the same loader is silent."""
    loader = DataLoader(Processes(1), num_workers=1, collate_fn=as_list, multiprocessing_context="fork")
    said: list[str] = []

    for _ in range(2):
        batches = begin(loader, said.append)
        assert next(batches)[0][1] == os.getpid()
        stop_loading(batches)

    (warning,) = said
    assert "the dataloader of Processes starts its workers by fork" in warning
    assert "with multiprocessing_context=None they start by forkserver" in warning


@posix
def test_a_choice_of_what_the_fork_server_imports_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one it imports torch, so that workers start in hundredths of a second instead of seconds."""
    server = forkserver._forkserver
    for chosen, imported in ((["__main__"], ["__main__", *loading.PRELOADED]), (["json"], ["json"])):
        monkeypatch.setattr(server, "_preload_modules", chosen)
        with loading._preloading("forkserver"):
            assert vars(server)["_preload_modules"] == imported
        assert vars(server)["_preload_modules"] == chosen


def test_the_users_function_initialises_workers_when_the_hub_is_there() -> None:
    """It is called in the worker, after the copy of the hub can be found, and stays the loader's own."""
    loader = DataLoader(Lengths(1), num_workers=1, collate_fn=as_list, worker_init_fn=note_the_hub)

    assert batches_of(loader) == [[len("digits")]]
    assert loader.worker_init_fn is note_the_hub


# --- what a pass gives ------------------------------------------------------------------------------------------------

LOADERS: dict[str, Callable[[int], DataLoader[Any]]] = {
    "samples": lambda workers: DataLoader(Numbers(), num_workers=workers, batch_size=None),
    "batches": lambda workers: DataLoader(Numbers(), num_workers=workers, batch_size=3),
    "drop_last": lambda workers: DataLoader(Numbers(), num_workers=workers, batch_size=3, drop_last=True),
    "shuffle": lambda workers: DataLoader(
        Numbers(), num_workers=workers, shuffle=True, generator=torch.Generator().manual_seed(1)
    ),
    "batch_sampler": lambda workers: DataLoader(
        Numbers(), num_workers=workers, batch_sampler=BatchSampler(SequentialSampler(range(5)), 2, False)
    ),
    "collate_fn": lambda workers: DataLoader(Numbers(), num_workers=workers, batch_size=2, collate_fn=doubled),
    "prefetch_factor": lambda workers: DataLoader(Numbers(), num_workers=workers, prefetch_factor=5 if workers else None),
    "a stream": lambda workers: DataLoader(Stream(), num_workers=workers),
    "an empty dataset": lambda workers: DataLoader(Numbers(0), num_workers=workers),
    "pin_memory": lambda workers: DataLoader(Numbers(), num_workers=workers, pin_memory=True),
}


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_workers_give_the_batches_that_the_loader_gives_without_them(make: Callable[[int], DataLoader[Any]]) -> None:
    """Every option of a loader works as without hookbus."""
    expected = [torch.as_tensor(batch).tolist() for batch in make(0)]

    assert [torch.as_tensor(batch).tolist() for batch in batches_of(make(2))] == expected


def test_persistent_workers_stay_for_the_next_pass() -> None:
    """They are started once, also where a pass was stopped early, and each pass is complete."""
    loader = DataLoader(Processes(6), num_workers=2, persistent_workers=True, collate_fn=as_list)
    stopped = begin(loader)
    seen = {next(stopped)[0][0] for _ in range(2)}
    stop_loading(stopped)

    for _ in range(2):
        pids = [pid for [(pid, _)] in batches_of(loader)]
        assert (len(pids), set(pids)) == (6, seen)
    end(loader)


def end(loader: DataLoader[Any]) -> None:
    """End persistent workers, as freeing the loader does."""
    loading._shut_down(loader._iterator)
    loader._iterator = None


# --- leaving nothing behind -------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("passes", [0, 1, 12], ids=["before a batch", "stopped early", "exhausted"])
def test_nothing_stays_behind_a_pass(passes: int) -> None:
    """Workers, threads and descriptors are gone as soon as the pass is over, or stopped."""
    loader = DataLoader(Processes(12), num_workers=2, collate_fn=as_list)
    batches_of(loader)  # makes the fork server, which stays
    threads, descriptors = set(threading.enumerate()), open_descriptors()

    batches = begin(loader)
    workers = [worker.pid for worker in batches._iterator._workers]
    for _ in range(passes):
        next(batches)
    stop_loading(batches)

    assert not [pid for pid in workers if is_alive(pid)]
    assert set(threading.enumerate()) == threads
    assert open_descriptors() == descriptors
    assert next(batches, None) is None


def open_descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/dev/fd"))


def is_alive(pid: int) -> bool:
    """Return whether there is a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_end_though_an_error_still_holds_their_iterator() -> None:
    """A traceback keeps what it passed through; workers do not wait for it."""
    batches = begin(DataLoader(Numbers(), num_workers=1))
    held = batches._iterator
    stop_loading(batches)

    assert not any(worker.is_alive() for worker in held._workers)


# --- what cannot be sent ----------------------------------------------------------------------------------------------


def make_local_dataset() -> Any:
    """Return a dataset of a class that no other process can import."""

    class Local(Numbers):
        pass

    return Local()


ANONYMOUS = lambda value: value  # noqa: E731  what pickle cannot find by its name

UNSENDABLE: dict[str, tuple[dict[str, Any], str]] = {
    "a local class": ({"dataset": make_local_dataset()}, r"dataset \(make_local_dataset.<locals>.Local\) cannot"),
    "an attribute": ({"dataset": Numbers(transform=ANONYMOUS)}, r"dataset.transform \(function <lambda>\) cannot"),
    "a nested part": (
        {"dataset": Numbers(fine=[1, doubled], source=Numbers(steps=[{"first": doubled}, {"last": ANONYMOUS}]))},
        r"dataset.source.steps\[1\]\['last'\] \(function <lambda>\) cannot",
    ),
    "a lock beside queues and tensors": (
        {"dataset": Numbers(data=torch.ones(3), queue=multiprocessing.get_context("spawn").Queue(), lock=threading.Lock())},
        r"dataset.lock \(lock\) cannot .* TypeError: cannot pickle '_thread.lock' object",
    ),
    "beside what is left behind": (
        {"dataset": Handles(handle=threading.Lock(), other=ANONYMOUS)},
        r"dataset.other \(function <lambda>\) cannot",
    ),
    "collate_fn": ({"dataset": Numbers(), "collate_fn": ANONYMOUS}, r"collate_fn \(function <lambda>\) cannot"),
    "worker_init_fn": ({"dataset": Numbers(), "worker_init_fn": ANONYMOUS}, r"worker_init_fn \(function <lambda>\) cannot"),
}


@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.parametrize(("options", "message"), UNSENDABLE.values(), ids=UNSENDABLE)
def test_what_cannot_be_sent_to_workers_is_named(options: dict[str, Any], message: str, action: Any) -> None:
    """The error says which part it is, of which class and why, and what can be done; the loader is as before."""
    loader = DataLoader(num_workers=2, **options)

    with warnings.catch_warnings():
        warnings.filterwarnings(action, message="Got pickle error")  # torch's own, without the name of the part
        with pytest.raises(DataLoaderError, match=message) as raised:
            begin(loader)

    assert isinstance(raised.value.__cause__, Exception)
    assert "top level of a module" in str(raised.value)
    assert "num_workers=0" in str(raised.value)
    assert "multiprocessing_context='fork'" in str(raised.value)
    assert (loader.multiprocessing_context, loader.worker_init_fn) == (None, options.get("worker_init_fn"))


class Broken(SequentialSampler):
    """A sampler whose own code fails."""

    def __iter__(self) -> Iterator[int]:
        raise TypeError("the sampler is broken")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch frees what it has half built
def test_an_error_of_the_loaders_own_is_left_as_it_is() -> None:
    """Only a failure to send is looked into, even where something could not have been sent."""
    loader = DataLoader(Numbers(transform=ANONYMOUS), sampler=Broken(range(3)), batch_size=None, num_workers=1)

    with pytest.raises(TypeError, match=r"^the sampler is broken$"):
        begin(loader)


class Expensive(Numbers):
    """Counts how often it is pickled."""

    pickled = 0

    def __reduce__(self) -> tuple[Any, ...]:
        Expensive.pickled += 1
        return Numbers, (1,)


def test_a_dataset_is_pickled_once_for_each_worker() -> None:
    """Whether it can be sent is seen when it is sent."""
    batches_of(DataLoader(Expensive(), num_workers=2))

    assert Expensive.pickled == 2


# --- workers that die -------------------------------------------------------------------------------------------------


@pytest.fixture
def torch_looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torch look after each fifth of a second, instead of five, whether its workers live."""
    monkeypatch.setattr(cast("Any", torch_dataloader._MultiProcessingDataLoaderIter)._try_get_data, "__defaults__", (0.2,))


@posix
@pytest.mark.usefixtures("torch_looks_often")
@pytest.mark.parametrize("persistent", [False, True], ids=["", "persistent"])
@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("exit", r"a dataloader worker died \(pid \d+, exit code 3\)\. Its own error, if it could report one, stands on stderr"),
        ("SIGKILL", r"a dataloader worker died \(pid \d+, killed by SIGKILL\)\. Most often memory ran out"),
    ],
)
def test_a_worker_that_dies_is_named_with_its_ending(ending: str, message: str, persistent: bool) -> None:
    """The error says how it ended; the others end too, and the loader can be used again."""
    dataset = Mortal(ending=ending)
    loader = DataLoader(dataset, num_workers=2, persistent_workers=persistent, prefetch_factor=1)
    batches = begin(loader)
    held = batches._iterator

    with pytest.raises(DataWorkerDied, match=message) as raised:
        list(batches)
    assert isinstance(raised.value, RuntimeError)
    assert not any(worker.is_alive() for worker in held._workers)

    dataset.ending = "none"
    dataset.length = 4
    assert len(batches_of(loader)) == 4
    if persistent:
        end(loader)


def test_an_error_in_a_dataset_is_left_as_it_is() -> None:
    """What a dataset raises in a worker reaches the loop as torch hands it over."""
    batches = begin(DataLoader(Numbers(2), num_workers=1, collate_fn=len))
    with closing(batches):
        assert next(batches) == 1

    batches = begin(DataLoader(Numbers(2), num_workers=1, collate_fn=broken))
    with closing(batches), pytest.raises(TypeError, match="worker process 0"):
        next(batches)


@pytest.fixture
def no_fork_server() -> Iterator[None]:
    """Begin and end without a fork server."""
    server = cast("Any", forkserver._forkserver)
    server._stop()
    yield
    with contextlib.suppress(ChildProcessError):  # it has died
        server._stop()


@posix
@pytest.mark.slow  # whoever loads next has to start another fork server
@pytest.mark.usefixtures("no_fork_server")
def test_a_fork_server_that_dies_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What it imports may end it, as a script that trains when it is imported does; the error says so."""
    (tmp_path / "mortal.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(forkserver._forkserver, "_preload_modules", ["mortal"])

    with pytest.raises(DataLoaderError, match=r"the fork server, which starts dataloader workers, died: .* under `if __name__"):
        begin(DataLoader(Numbers(), num_workers=1))
    assert "imported" in capfd.readouterr().err


# --- programs that workers cannot import ------------------------------------------------------------------------------

PROGRAM = """
import torch
from torch.utils.data import DataLoader
from hookbus.hub import MessageHub
from hookbus.loading import start_loading, stop_loading

class Cells(torch.utils.data.Dataset):
    def __len__(self): return 2
    def __getitem__(self, index): return index

def train():
    batches = start_loading(DataLoader(Cells(), num_workers=1), MessageHub("digits"), print)
    print("batches:", len(list(batches)))
    stop_loading(batches)
"""


def run_program(text: str, path: Path | None) -> subprocess.CompletedProcess[str]:
    """Run a program from a file, or as a prompt would."""
    if path is not None:
        path.write_text(text, encoding="utf-8")
    root = Path(__file__).parents[1]
    command = [sys.executable, *(["-c", text] if path is None else [str(path)])]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=170, env={**os.environ, "PYTHONPATH": str(root)}
    )


@posix
@pytest.mark.slow
@pytest.mark.timeout(180)  # another interpreter imports torch
def test_a_dataset_defined_at_a_prompt_is_refused_at_once() -> None:
    """A worker could not import it; the error says so before any worker is started."""
    ended = run_program(PROGRAM + "\ntrain()", None)

    assert ended.returncode == 1
    assert "dataset cannot be sent to dataloader workers: Cells is defined in a notebook or at a prompt" in ended.stderr


@posix
@pytest.mark.slow
@pytest.mark.timeout(180)  # two interpreters import torch, one after the other
def test_a_script_without_a_guard_is_told_about_it(tmp_path: Path) -> None:
    """The worker that imports it refuses to train, and the run that misses the worker names the guard."""
    ended = run_program(PROGRAM + "\ntrain()", tmp_path / "unguarded.py")

    assert (ended.returncode, ended.stdout) == (1, "")
    assert "put what it does under `if __name__ == '__main__':`\n" in ended.stderr
    assert re.search(r"DataWorkerDied: a dataloader worker died \(pid \d+, exit code 1\).*`if __name__", ended.stderr)


@posix
@pytest.mark.slow
@pytest.mark.timeout(180)  # two interpreters import torch, one after the other
def test_a_script_with_a_guard_trains(tmp_path: Path) -> None:
    """The same program with its guard is fine, with a dataset of its own."""
    ended = run_program(PROGRAM + textwrap.dedent("""
        if __name__ == "__main__":
            train()
        """), tmp_path / "guarded.py")  # fmt: skip

    assert (ended.returncode, ended.stdout) == (0, "batches: 2\n"), ended.stderr
