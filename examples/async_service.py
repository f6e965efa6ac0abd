"""Train inside a web service: start a run, watch it live, pause it, change its learning rate, save, stop.

    python examples/async_service.py                 then open http://127.0.0.1:8000
    curl -N 127.0.0.1:8000/run/events
    curl -X POST 127.0.0.1:8000/run/set_lr -H 'content-type: application/json' -d '{"lr": 0.001}'

The run is a task of the server's event loop; training has a thread of its own, so requests are answered meanwhile. Each
watcher has a stream of events: who is too slow loses the oldest ones, is told how many, and holds up nobody. Each control
is answered with the epoch and iteration at which it took effect. The service listens on loopback only; it has no passwords.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, cast

import anyio
import msgspec
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send
from torch.utils.data import DataLoader, TensorDataset

from hookbus import ControlApplied, Event, Hook, RunEnded, Runner, ScalarsLanded, on
from hookbus.errors import ConfigError, HookbusError, InvalidName, WouldDeadlock, choices, describe_error

CONTROLS: Mapping[str, tuple[str, ...]] = dict(pause=(), unpause=(), save=("name",), validate=(), set_lr=("lr",), stop=())
"""What may be asked of a run, and with which arguments."""
STATUS: Mapping[type[Exception], int] = {RunEnded: 409, WouldDeadlock: 409, ConfigError: 422, InvalidName: 422}
"""Which status code an error becomes; any other one is 500."""
WATCHER = "a watcher"  # what the streams are called


class Message(Event):
    """Something for everyone who watches."""

    kind: str
    facts: dict[str, Any]


class Announcer(Hook):
    """Puts what watchers want to know into one kind of event, so that each of them reads one stream."""

    def __init__(self, every: int, begun: Callable[[], object]) -> None:
        self.every = every
        self.begun = begun

    async def before_run(self, runner: Runner) -> None:
        """Say on the event loop that the run takes controls from now on."""
        self.bus = runner.bus
        self.begun()

    @on(ScalarsLanded)
    def numbers(self, iters: list[int], scalars: dict[str, list[float | None]]) -> None:
        """Announce the values of every n-th iteration; they have reached the host, so nothing waits for a device."""
        for place, number in enumerate(iters):
            if number % self.every == 0:
                facts = {"iter": number} | {key: row[place] for key, row in scalars.items()}
                self.bus.emit(Message(kind="numbers", facts=facts))

    @on(ControlApplied)
    def control(self, event: ControlApplied) -> None:
        """Announce who changed what."""
        self.bus.emit(Message(kind="control", facts=msgspec.structs.asdict(event)))

    def after_val_epoch(self, epoch: int, iter: int, metrics: dict[str, Any]) -> None:
        """Announce the metrics of a validation."""
        self.bus.emit(Message(kind="metrics", facts={"epoch": epoch, "iter": iter} | metrics))


def make_runner(work_dir: Path, epochs: int, lr: float, resume: bool, announcer: Announcer) -> Runner:
    """Return a run that fits a noisy sine."""
    torch.manual_seed(0)
    inputs = torch.linspace(-3, 3, 1024).unsqueeze(1)
    data = TensorDataset(inputs, inputs.sin() + 0.1 * torch.randn_like(inputs))
    network = torch.nn.Sequential(torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    return Runner(
        model=network,
        loss_fn=torch.nn.functional.mse_loss,
        optimizer=dict(type="SGD", lr=lr, momentum=0.9),
        train_dataloader=DataLoader(data, batch_size=32, shuffle=True),
        val_dataloader=DataLoader(data, batch_size=256),
        train_cfg=dict(max_epochs=epochs, val_interval=25),
        default_hooks=dict(checkpoint=dict(interval=25, max_keep_ckpts=2), logger=dict(interval=32, writers=["jsonl"])),
        custom_hooks=[announcer],
        resume="auto" if resume else False,
        work_dir=work_dir,
    )


class Service:
    """Holds the one run that may be live, on the loop of the server."""

    def __init__(self, work_dir: Path, every: int, backlog: int) -> None:
        self.work_dir = work_dir
        self.every = every
        self.backlog = backlog
        self.runner: Runner | None = None
        self.problem: str | None = None  # what ended the newest run, where that was an error
        self._is_busy = False

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Own the task of the run; one that is left at the end is cancelled, which saves a last checkpoint, too."""
        async with anyio.create_task_group() as self._tasks:
            yield
            self._tasks.cancel_scope.cancel()

    async def start(self, epochs: int, lr: float, resume: bool) -> None:
        """Begin a run, and return when it takes controls."""
        if self._is_busy:
            raise HTTPException(409, "a run is going on; stop it first")
        self._is_busy, self.problem, begun = True, None, anyio.Event()
        announcer = Announcer(self.every, begun.set)
        try:
            self.runner = await anyio.to_thread.run_sync(make_runner, self.work_dir, epochs, lr, resume, announcer)
            self._tasks.start_soon(self._train, self.runner, begun)
        except BaseException:
            self._is_busy = False
            raise
        await begun.wait()

    async def _train(self, runner: Runner, begun: anyio.Event) -> None:
        try:
            await runner.train_async()
        except Exception as error:  # noqa: BLE001  a run that fails ends itself, and not the service
            self.problem = describe_error(error)
        finally:
            self._is_busy = False
            begun.set()

    def live(self) -> Runner:
        """Return the runner of the live run; `RunEnded` where there is none."""
        if self.runner is None or self.runner.running is None:
            raise RunEnded("no run is going on; start one with POST /run")
        return self.runner

    def stop(self) -> None:
        """Ask the run to stop, from a signal handler; its event streams end with it."""
        with suppress(RunEnded):
            self.live().stop(requested_by="a signal").forgive()

    def status(self) -> dict[str, Any]:
        """Return what is known of the newest run, from one version of its message hub."""
        if (runner := self.runner) is None:
            return {"live": False}
        seen = runner.message_hub.snapshot()
        facts = {name: seen.get_info(name, None) for name in ("epoch", "iter", "max_epochs", "loop_lag")}
        watchers = [{"pending": s.pending, "dropped": s.dropped} for s in runner.bus.stats() if s.name == WATCHER]
        return facts | dict(live=runner.running is not None, scalars=seen.scalars, watchers=watchers, problem=self.problem)


class JSON(JSONResponse):
    """An answer in JSON, with null for NaN and infinities."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return msgspec.json.encode(content, enc_hook=str)


class EventStreamResponse(StreamingResponse):
    """Server-sent events, whose source is closed as soon as nobody reads any more."""

    media_type = "text/event-stream"

    async def stream_response(self, send: Send) -> None:
        """Send until the source ends or the client is gone."""
        async with aclosing(cast("Any", self.body_iterator)):
            await super().stream_response(send)


async def watch(service: Service, runner: Runner) -> AsyncIterator[str]:
    """Yield what one client is sent, until the run ends."""
    async with runner.bus.stream(Message, maxsize=service.backlog, name=WATCHER) as messages:
        if runner.running is not None:  # else it ended just before, and nothing would end the stream
            yield as_text("status", service.status())
            async for message in messages:
                yield as_text(message.kind, message.facts | {"dropped": messages.dropped})
    yield as_text("end", service.status())


def as_text(kind: str, facts: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"event: {kind}\ndata: {msgspec.json.encode(facts).decode()}\n\n"


async def read_arguments(request: Request, allowed: Collection[str]) -> dict[str, Any]:
    """Return the arguments of a request; only JSON is read, which no foreign page can send without being allowed to."""
    body = await request.body()
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise HTTPException(415, "expected content-type: application/json")
    try:
        arguments = msgspec.json.decode(body or b"{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise HTTPException(400, f"the body is no JSON object: {error}") from error
    for name in arguments.keys() - set(allowed):
        raise HTTPException(422, f"unknown argument {name!r}; {choices(name, allowed) if allowed else 'there are none'}")
    return arguments


def routes(service: Service) -> list[Route]:
    """Return who answers which request."""

    async def page(request: Request) -> Response:
        return FileResponse(Path(__file__).with_name("async_service.html"))

    async def status(request: Request) -> Response:
        return JSON(service.status())

    async def start(request: Request) -> Response:
        options: dict[str, Any] = {"epochs": 2000, "lr": 0.02, "resume": False}
        options |= await read_arguments(request, options)
        await service.start(**options)
        return JSON(service.status(), status_code=201)

    async def events(request: Request) -> Response:
        return EventStreamResponse(watch(service, service.live()))

    async def control(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in CONTROLS:
            raise HTTPException(404, f"unknown control {name!r}; {choices(name, CONTROLS)}")
        arguments = await read_arguments(request, CONTROLS[name])
        if name == "set_lr" and "lr" not in arguments:
            raise HTTPException(422, "set_lr needs the argument 'lr'")
        who = f"{request.client.host}:{request.client.port}" if request.client else "a client"
        answer = await getattr(service.live(), name)(**arguments, requested_by=who)
        return JSON({"control": name} | answer._asdict())

    return [
        Route("/", page),
        Route("/run", status),
        Route("/run", start, methods=["POST"]),
        Route("/run/events", events),
        Route("/run/{name}", control, methods=["POST"]),
    ]


async def refuse(request: Request, error: Exception) -> Response:
    """Answer with an error."""
    if isinstance(error, HTTPException):
        return JSON({"error": error.detail}, error.status_code)
    return JSON({"error": str(error)}, STATUS.get(type(error), 500))


def make_app(service: Service) -> Starlette:
    """Return the web application of a service."""
    return Starlette(
        routes=routes(service),
        lifespan=service.lifespan,
        exception_handlers={HTTPException: refuse, HookbusError: refuse},
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
    )


class Server(uvicorn.Server):
    """A server that first ends the run when it is told to end: open event streams end with it, so nobody waits for them."""

    def __init__(self, service: Service) -> None:
        # The time out is for clients that do not read: the end of a stream does not reach them.
        super().__init__(uvicorn.Config(make_app(service), log_level="warning", timeout_graceful_shutdown=3))
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        self.service.stop()
        super().handle_exit(sig, frame)


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--every", type=int, default=50, help="iterations between two numbers that watchers are sent")
    parser.add_argument("--backlog", type=int, default=1024, help="messages that may wait for a slow watcher")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/async_service"))
    arguments = parser.parse_args()

    listener = socket.create_server(("127.0.0.1", arguments.port))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32_768)  # what a client does not read waits in its stream instead
    print(f"serving on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    with suppress(KeyboardInterrupt):
        Server(Service(arguments.work_dir, arguments.every, arguments.backlog)).run(sockets=[listener])


if __name__ == "__main__":
    main()
