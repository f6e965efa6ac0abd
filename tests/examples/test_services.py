"""The services of the examples, on real servers in processes of their own, asked over loopback."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.examples.served import Service, Watcher, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

Watch: TypeAlias = Callable[..., Watcher]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a service on uvicorn that tells of every iteration, and keeps little for those who are slow."""
    with serving("async_service.py", tmp_path_factory.mktemp("asyncio"), "--every", "1", "--backlog", "32") as service:
        yield service


@pytest.fixture
def run(server: Service) -> Iterator[Service]:
    """Return the service with a run going on."""
    assert server.post("/run", epochs=100_000)["live"]
    yield server
    server.ask("POST", "/run/stop", "{}")
    server.wait_until(lambda status: not status["live"])


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Open streams of events, which are closed in the end."""
    with ExitStack() as watchers:

        def open_one(service: Service, path: str = "/run/events", receive_buffer: int | None = None) -> Watcher:
            watcher = Watcher(service.port, path, receive_buffer)
            watchers.callback(watcher.close)
            return watcher

        yield open_one


def test_a_run_is_watched_steered_and_stopped(server: Service, watch: Watch) -> None:
    """Each control is answered with the iteration at which it took effect, and every watcher hears of it."""
    server.post("/run", epochs=100_000, lr=0.02)
    watcher = watch(server)
    numbers = [watcher.next("numbers") for _ in range(5)]
    assert [n["iter"] for n in numbers] == list(range(numbers[0]["iter"], numbers[0]["iter"] + 5))
    assert {n["train/lr"] for n in numbers} == {0.02}

    paused = server.post("/run/pause")["iter"]
    changed = server.post("/run/set_lr", lr=0.001)
    saved = server.post("/run/save", name="by_hand")
    assert (changed["iter"], saved["iter"], server.status()["iter"]) == (paused, paused, paused)
    assert (Path(saved["path"]).name, (Path(saved["path"]) / "manifest.json").is_file()) == ("by_hand", True)
    heard = watcher.next("control", lambda facts: facts["control"] == "set_lr")
    assert (heard["arguments"], heard["iter"], heard["requested_by"][:10]) == ({"lr": 0.001}, paused, "127.0.0.1:")

    server.post("/run/unpause")
    following = watcher.next("numbers", lambda facts: facts["iter"] > paused)
    assert (following["iter"], following["train/lr"]) == (paused + 1, 0.001)
    assert server.post("/run/validate")["metrics"].keys() == {"loss"}
    assert watcher.next("metrics").keys() >= {"epoch", "iter", "loss"}

    stopped = server.post("/run/stop")["iter"]
    *_, (kind, last) = watcher.messages()
    assert (kind, last["live"], last["iter"], last["problem"]) == ("end", False, stopped, None)
    assert server.newest_checkpoint() in (f"iter_{stopped}", f"epoch_{stopped // 32}")


def test_several_browsers_see_the_same_run_and_may_leave_at_any_time(run: Service, watch: Watch) -> None:
    """Each has a stream of its own, which ends with it, also while nothing is sent."""
    first, second = (watch(run) for _ in range(2))
    assert first.next("numbers")["iter"] >= 1
    reached = second.next("numbers")["iter"]
    assert first.next("numbers", lambda facts: facts["iter"] >= reached)["iter"] >= reached
    assert len(run.status()["watchers"]) == 2

    run.post("/run/pause")
    first.close()
    run.wait_until(lambda status: len(status["watchers"]) == 1)
    run.post("/run/unpause")
    assert second.next("control", lambda facts: facts["control"] == "unpause")["iter"] >= reached
    second.close()
    run.wait_until(lambda status: status["watchers"] == [])


def test_a_browser_that_does_not_read_loses_the_oldest_events_and_holds_up_nobody(run: Service, watch: Watch) -> None:
    """What it lost is counted, and training went on meanwhile."""
    slow = watch(run, receive_buffer=4096)
    late = run.wait_until(lambda status: any(watcher["dropped"] >= 10 for watcher in status["watchers"]))
    assert run.post("/run/pause")["iter"] >= late["iter"]

    seen = 0
    for kind, facts in slow.messages():
        if kind == "numbers":
            if facts["dropped"]:
                break
            assert facts["iter"] > seen
            seen = facts["iter"]
    assert facts["iter"] > seen + 1  # some are missing in between


def test_the_page_is_served(server: Service) -> None:
    """It needs nothing from elsewhere."""
    status, page = server.ask("GET", "/")

    assert (status, "<!doctype html>" in page["error"], "http" in page["error"]) == (200, True, False)


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "message"),
    [
        ("GET", "/run/events", None, JSON, 409, "no run is going on"),
        ("POST", "/run/pause", "{}", JSON, 409, "no run is going on"),
        ("POST", "/run/paus", "{}", JSON, 404, "did you mean 'pause'?"),
        ("POST", "/run/save", '{"nam": "x"}', JSON, 422, "did you mean 'name'?"),
        ("POST", "/run/set_lr", "{}", JSON, 422, "needs the argument 'lr'"),
        ("POST", "/run/stop", "{", JSON, 400, "no JSON object"),
        ("POST", "/run/stop", "[]", JSON, 400, "no JSON object"),
        ("POST", "/run/stop", "{}", {"content-type": "text/plain"}, 415, "application/json"),
        ("POST", "/run", '{"lr": "fast"}', JSON, 422, "optimizer.lr = 'fast'"),
        ("POST", "/run", '{"epochs": -1}', JSON, 422, "max_epochs"),
        ("POST", "/run", '{"epoch": 1}', JSON, 422, "did you mean 'epochs'?"),
        ("GET", "/nowhere", None, JSON, 404, "Not Found"),
        ("GET", "/run", None, {"host": "example.org"}, 400, "Invalid host header"),
    ],
)
def test_what_cannot_be_done_is_said(
    server: Service, method: str, path: str, body: str | None, headers: dict[str, str], status: int, message: str
) -> None:
    """An error has a status code and names what is wrong; nothing begins."""
    found, answer = server.ask(method, path, body, **headers)

    assert (found, message in answer["error"]) == (status, True), answer
    assert not server.status()["live"]


def test_a_live_run_refuses_what_does_not_fit(run: Service) -> None:
    """It goes on as it was."""
    assert run.ask("POST", "/run", "{}")[0] == 409
    assert run.ask("POST", "/run/set_lr", '{"lr": -1}')[0] == 422
    assert run.ask("POST", "/run/save", '{"name": "../elsewhere"}')[0] == 422
    assert run.status()["live"]


@pytest.mark.parametrize(
    ("example", "path", "exit_code"),
    [
        pytest.param("async_service.py", "/run/events", -signal.SIGTERM, id="uvicorn"),
        pytest.param("trio_service.py", "/events", 0, id="hypercorn"),
    ],
)
def test_sigterm_ends_a_service_with_open_clients_and_commits_the_last_checkpoint(
    tmp_path: Path, watch: Watch, example: str, path: str, exit_code: int
) -> None:
    """Open streams end with the run, and the process in a few seconds, also where one client has long stopped reading."""
    with serving(example, tmp_path, "--every", "1") as service:
        if example == "async_service.py":
            service.post("/run", epochs=100_000)
            watch(service, path, receive_buffer=4096)
            service.wait_until(lambda status: status["watchers"][0]["dropped"] > 0)  # it is stuck
        watchers = [watch(service, path) for _ in range(10)]
        reached = max(next(facts["iter"] for _, facts in watcher.messages() if facts.get("iter")) for watcher in watchers)

        seconds = service.end(signal.SIGTERM)

        print(f"{example} ended {seconds:.1f} s after SIGTERM")
        assert service.process.returncode == exit_code
        unit, _, number = service.newest_checkpoint().partition("_")
        saved = int(number) if unit == "iter" else int(number) * 32
        assert saved >= reached
        ends = [facts["iter"] for watcher in watchers for _, facts in list(watcher.messages())[-1:]]
        assert set(ends) == {saved}


def test_a_run_on_trio_is_watched_steered_and_stopped(tmp_path: Path, watch: Watch) -> None:
    """The same on hypercorn; the program ends with its run."""
    with serving("trio_service.py", tmp_path, "--every", "5") as service:
        watcher = watch(service, "/events")
        numbers = [watcher.next("message")["iter"] for _ in range(5)]
        assert numbers == list(range(numbers[0], numbers[0] + 25, 5))

        paused = service.post("/pause")["iter"]
        assert service.post("/set_lr?lr=0.001")["iter"] == service.post("/save")["iter"] == paused
        assert service.ask("POST", "/paus")[1]["error"].startswith("unknown control 'paus'; did you mean 'pause'?")
        assert [service.ask("POST", path)[0] for path in ("/set_lr?lr=fast", "/set_lr?lr=-1", "/set_lr")] == [422, 422, 422]
        service.post("/unpause")
        assert watcher.next("message", lambda facts: facts["iter"] > paused + 5)["lr"] == 0.001

        stopped = service.post("/stop")["iter"]
        assert [facts["iter"] <= stopped for _, facts in watcher.messages()][-1:] in ([], [True])
        service.end()
        assert service.process.returncode == 0
        assert service.newest_checkpoint() in (f"iter_{stopped}", f"epoch_{stopped // 32}")
