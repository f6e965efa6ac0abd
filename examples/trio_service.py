"""Train inside a trio program that is also a small web service: watch the run, pause it, change its learning rate, stop it.

    python examples/trio_service.py                 then, in another terminal:

    curl -N 127.0.0.1:8001/events
    curl -X POST 127.0.0.1:8001/pause
    curl -X POST 127.0.0.1:8001/unpause
    curl -X POST '127.0.0.1:8001/set_lr?lr=0.001'
    curl -X POST 127.0.0.1:8001/stop

One nursery holds the run, the server and who listens for signals. When the run is over, for whatever reason, its event
streams end and the server with them. SIGTERM and Ctrl-C stop the run at the next step boundary, with its last checkpoint.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send
from torch.utils.data import DataLoader, TensorDataset

from hookbus import AfterTrainIter, BeforeRun, RunEnded, Runner
from hookbus.errors import ConfigError, choices

CONTROLS = ("pause", "unpause", "save", "set_lr", "stop")


def make_runner(epochs: int, work_dir: Path) -> Runner:
    """Return a run that fits a noisy sine."""
    torch.manual_seed(0)
    inputs = torch.linspace(-3, 3, 1024).unsqueeze(1)
    data = TensorDataset(inputs, inputs.sin() + 0.1 * torch.randn_like(inputs))
    network = torch.nn.Sequential(torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    return Runner(
        model=network,
        loss_fn=torch.nn.functional.mse_loss,
        optimizer=dict(type="SGD", lr=0.02, momentum=0.9),
        train_dataloader=DataLoader(data, batch_size=32, shuffle=True),
        train_cfg=dict(max_epochs=epochs),
        default_hooks=dict(checkpoint=dict(interval=25, max_keep_ckpts=2), logger=None),
        work_dir=work_dir,
    )


class EventStreamResponse(StreamingResponse):
    """Server-sent events, whose source is closed as soon as nobody reads any more."""

    media_type = "text/event-stream"

    async def stream_response(self, send: Send) -> None:
        """Send until the source ends or the client is gone."""
        async with aclosing(cast("Any", self.body_iterator)):
            await super().stream_response(send)


async def watch(runner: Runner, every: int) -> AsyncIterator[str]:
    """Yield what one client is sent, until the run ends; a slow one loses the oldest events."""
    hub = runner.message_hub
    async with runner.bus.stream(AfterTrainIter, every=every, maxsize=64) as events:
        if runner.running is None:  # it ended just before, and nothing would end the stream
            return
        async for event in events:
            newest = {"loss": hub.get_scalar("train/loss").mean(every), "lr": hub.get_scalar("train/lr").current()}
            facts = {"epoch": event.epoch, "iter": event.iter + 1, "dropped": events.dropped} | newest
            yield f"data: {msgspec.json.encode(facts).decode()}\n\n"


def make_app(runner: Runner, every: int) -> Starlette:
    """Return the web application of a run."""

    async def events(request: Request) -> Response:
        return EventStreamResponse(watch(runner, every))

    async def control(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in CONTROLS:
            return JSONResponse({"error": f"unknown control {name!r}; {choices(name, CONTROLS)}"}, 404)
        try:
            arguments = [float(request.query_params["lr"])] if name == "set_lr" else []
            answer = await getattr(runner, name)(*arguments, requested_by="a client")
        except (RunEnded, ConfigError, KeyError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 409 if isinstance(error, RunEnded) else 422)
        return JSONResponse({"control": name, "epoch": answer.epoch, "iter": answer.iter})

    return Starlette(routes=[Route("/events", events), Route("/{name}", control, methods=["POST"])])


async def stop_on_signal(runner: Runner, *, task_status: trio.TaskStatus[None]) -> None:
    """Stop the run when the process is told to end; whatever else it holds ends with it."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            with suppress(RunEnded):
                runner.stop(requested_by=signal.Signals(number).name).forgive()


async def run(runner: Runner, config: Config, every: int) -> None:
    """Train and serve side by side, until the run is over."""
    over = trio.Event()
    async with trio.open_nursery() as listening:
        await listening.start(stop_on_signal, runner)
        async with trio.open_nursery() as serving:

            @runner.bus.on(BeforeRun)
            async def begin() -> None:  # from here on the run takes controls
                app = cast("Any", make_app(runner, every))
                (address,) = await serving.start(partial(serve, app, config, shutdown_trigger=over.wait))
                print(f"serving on {address}", flush=True)

            try:
                await runner.train_async()
            finally:
                over.set()
        listening.cancel_scope.cancel()
    print(f"trained for {runner.epoch} epochs, {runner.iter} iterations")


def main() -> None:
    """Train, served on loopback only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8001, help="0 takes a free one")
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--every", type=int, default=50, help="iterations between two events that watchers are sent")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/trio_service"))
    arguments = parser.parse_args()

    config = Config()
    config.bind = [f"127.0.0.1:{arguments.port}"]
    config.loglevel = "WARNING"
    config.graceful_timeout = 1  # seconds for the last words of streams, which have ended by then
    trio.run(run, make_runner(arguments.epochs, arguments.work_dir), config, arguments.every)


if __name__ == "__main__":
    main()
