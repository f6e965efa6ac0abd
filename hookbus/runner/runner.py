"""The runner: the parts of a run in one place, and the calls that start one."""

from __future__ import annotations

__all__ = ("Runner",)

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from hookbus._named import check_name
from hookbus._version import __version__
from hookbus.bus import EventBus
from hookbus.device import default_device, mover
from hookbus.distributed import is_main_process, rank, world_size
from hookbus.errors import ConfigError, RunEnded
from hookbus.events import AfterLoadCheckpoint
from hookbus.hub import MessageHub
from hookbus.loops.base import BaseLoop, LoopContext
from hookbus.mailbox import Acknowledgement
from hookbus.priority import Priority, get_priority
from hookbus.progress import Progress
from hookbus.runner.assembly import (
    StepFunctions,
    build_dataloader,
    build_evaluation_loop,
    build_log_processor,
    build_optim_wrapper,
    build_options,
    build_schedulers,
    build_train_loop,
    check_functions,
    check_model,
    check_phases,
)
from hookbus.runner.defaults import build_hook, build_hooks, check_subscribable
from hookbus.runner.lifecycle import run_awaited, run_here
from hookbus.runner.logs import RunLogger, unused_timestamp
from hookbus.runner.randomness import Randomness, seed_everything
from hookbus.runner.residence import Residence
from hookbus.runner.saving import Saver, SaveRequest
from hookbus.training_thread import TookEffect, TrainingThread
from hookbus.types import Backend, HookLike

T = TypeVar("T")


class Runner:
    """Trains, validates and tests a model, and publishes what happens as events.

    Parts are PyTorch objects or configs, `dict(type=...)`. A phase runs if its dataloader is given.

    Args:
        model: the module to train; moved to `device`.
        work_dir: where logs and checkpoints go.
        loss_fn: `loss_fn(model(inputs), targets)` for batches that are `(inputs, targets)`.
        train_step: `train_step(model, batch)`, for anything else; returns the loss, or a dict with the key `loss`.
        val_step: `val_step(model, batch)`; returns `(predictions, targets)`, or a dict of scalars.
        optimizer: a torch optimizer, or a config.
        param_scheduler: a torch scheduler, a config, or a list of these.
        train_dataloader: yields the batches of one epoch; a dict gives the options of torch's own.
        val_dataloader: likewise, for validation.
        test_dataloader: likewise, for the test.
        train_cfg: `dict(max_epochs=..., val_begin=1, val_interval=1)`.
        val_cfg: `{}` where there is a dataloader.
        test_cfg: `{}` where there is a dataloader.
        val_evaluator: a torchmetrics metric or collection, or a config.
        test_evaluator: likewise; that of the validation where left out.
        default_hooks: changes to the default hooks by name; None removes one.
        custom_hooks: further hooks or configs.
        load_from: a checkpoint whose weights to begin with.
        resume: not available yet.
        device: where the model lives; what `torch.accelerator` says where left out.
        randomness: `dict(seed=..., deterministic=False)`.
        log_processor: `LogProcessor`, or a dict of its options.
        log_level: the least serious messages that are logged.
        experiment_name: names hub and bus; the last part of `work_dir` where left out.
        bus: the bus to publish on; the one of `experiment_name` where left out.
        hub: the hub to keep; a fresh one of `experiment_name` where left out.

    Raises:
        ConfigError: something is unknown, ill-typed, missing or does not fit; says what would.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        work_dir: str | Path = "runs/default",
        loss_fn: Callable[..., torch.Tensor] | None = None,
        train_step: Callable[..., Any] | None = None,
        val_step: Callable[..., Any] | None = None,
        optimizer: Any = None,
        param_scheduler: Any = None,
        train_dataloader: Any = None,
        val_dataloader: Any = None,
        test_dataloader: Any = None,
        train_cfg: Mapping[str, Any] | None = None,
        val_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        val_evaluator: Any = None,
        test_evaluator: Any = None,
        default_hooks: Mapping[str, Any] | None = None,
        custom_hooks: Any = None,
        load_from: str | Path | None = None,
        resume: bool | str | Path = False,
        device: str | torch.device | None = None,
        randomness: Mapping[str, Any] | None = None,
        log_processor: Any = None,
        log_level: str | int = "INFO",
        experiment_name: str | None = None,
        bus: EventBus | None = None,
        hub: MessageHub | None = None,
    ) -> None:
        if resume is not False:
            msg = f"resume = {resume!r}: resuming is not available yet; load_from takes the weights of a checkpoint"
            raise NotImplementedError(msg)
        check_model(model)
        check_functions({"loss_fn": loss_fn, "train_step": train_step, "val_step": val_step})
        check_phases(
            {
                "train_dataloader": train_dataloader,
                "train_cfg": train_cfg,
                "optimizer": optimizer,
                "val_dataloader": val_dataloader,
                "val_cfg": val_cfg,
                "val_evaluator": val_evaluator,
                "test_dataloader": test_dataloader,
                "test_cfg": test_cfg,
                "test_evaluator": test_evaluator,
                "randomness": randomness,
            }
        )
        self.work_dir = Path(work_dir)
        self.experiment_name = check_name(experiment_name or self.work_dir.resolve().name, "experiment_name")
        self.timestamp = unused_timestamp(self.work_dir)
        self.log_dir = self.work_dir / self.timestamp
        self.logger = RunLogger(self.experiment_name, log_level)
        self.log_processor = build_log_processor(log_processor)
        self.rank, self.world_size = rank(), world_size()
        self.seed = seed_everything(**build_options(Randomness, randomness, "randomness"))
        self.device = torch.device(device) if device is not None else default_device()
        self.model = model.to(self.device)
        self.progress = Progress()
        self.optim_wrapper = build_optim_wrapper(optimizer, model)
        self.param_schedulers = build_schedulers(param_scheduler, self.optim_wrapper)
        self.train_dataloader = build_dataloader(train_dataloader, "train_dataloader")
        self.val_dataloader = build_dataloader(val_dataloader, "val_dataloader")
        self.test_dataloader = build_dataloader(test_dataloader, "test_dataloader")
        self._hook_entries = build_hooks(default_hooks, custom_hooks)
        self._context = LoopContext(self, self.model, self.progress, self.device, mover(self.device))
        functions = StepFunctions(loss_fn, train_step, val_step)
        test_evaluator = test_evaluator if test_evaluator is not None else val_evaluator
        self.val_loop = build_evaluation_loop("val", self._context, self.val_dataloader, functions, val_cfg, val_evaluator)
        self.test_loop = build_evaluation_loop("test", self._context, self.test_dataloader, functions, test_cfg, test_evaluator)
        self.train_loop = build_train_loop(
            self._context, self.train_dataloader, functions, train_cfg, self.optim_wrapper, self.val_loop
        )
        self._saver = Saver(self)
        self._load_from = load_from
        self._running: str | None = None
        self._thread: TrainingThread | None = None
        self._residence = Residence()
        # Taken last, so that what was prepared for a run is still there when a refused runner is corrected.
        self.message_hub = hub if hub is not None else MessageHub.for_run(self.experiment_name)
        self.bus = bus if bus is not None else EventBus.for_run(self.experiment_name)
        self._context.bus, self._context.hub = self.bus, self.message_hub
        if self.optim_wrapper is not None:
            self.optim_wrapper.attach(self.bus, self.progress, {"runner": self})
        self._residence.take(self.bus, self._hook_entries)
        if self._residence.is_on(self.bus):
            self.bus.hub = self.message_hub

    def __repr__(self) -> str:
        return f"<Runner {self.experiment_name!r}: epoch {self.epoch} of {self.max_epochs}, iteration {self.iter}>"

    # --- running ------------------------------------------------------------------------------------------------------

    def train(self, *, backend: Backend = "asyncio") -> dict[str, Any]:
        """Train on this thread until it is over; return the metrics of the last validation.

        Awaited handlers run on an event loop of its own thread, of the given backend.
        """
        return run_here(self, "train", backend)

    def val(self, *, backend: Backend = "asyncio") -> dict[str, Any]:
        """Validate on this thread and return the metrics."""
        return run_here(self, "val", backend)

    def test(self, *, backend: Backend = "asyncio") -> dict[str, Any]:
        """Test on this thread and return the metrics."""
        return run_here(self, "test", backend)

    async def train_async(self) -> dict[str, Any]:
        """Train on a thread of its own while the event loop stays free; cancelling stops at the next step boundary."""
        return await run_awaited(self, "train")

    async def val_async(self) -> dict[str, Any]:
        """Validate on a thread of its own and return the metrics."""
        return await run_awaited(self, "val")

    async def test_async(self) -> dict[str, Any]:
        """Test on a thread of its own and return the metrics."""
        return await run_awaited(self, "test")

    # --- asking a run -------------------------------------------------------------------------------------------------

    def stop(self) -> Acknowledgement[TookEffect]:
        """Stop training at the next step boundary; from any thread, task or hook.

        Returns at once; the acknowledgement gives the epoch and iteration at which it took effect, or `RunEnded`.
        """
        return self._live_thread("stop()").stop()

    def run_on_main_stream(self, function: Callable[..., T], *arguments: Any) -> Acknowledgement[T]:
        """Have `function(*arguments)` called on the training thread at its next safe point.

        Returns at once; the acknowledgement gives what the function returned or raised.
        """
        name = getattr(function, "__qualname__", repr(function))
        return self._live_thread(f"run_on_main_stream({name})").submit(lambda: function(*arguments), name)

    def request_save(
        self,
        name: str,
        *,
        role: str = "periodic",
        max_keep: int = -1,
        facts: Mapping[str, Any] | None = None,
        supersedes: tuple[str, ...] = (),
    ) -> Acknowledgement[Path | None]:
        """Have a checkpoint taken at the next step boundary.

        Args:
            name: of its directory.
            role: `periodic`, or another word for one that retention does not count.
            max_keep: how many periodic checkpoints stay, the newest; -1 for all.
            facts: plain values to keep in its manifest.
            supersedes: checkpoints that go once this one is committed.
        """
        request = SaveRequest(check_name(name, "a checkpoint"), role, max_keep, facts or {}, supersedes)
        return self._live_thread(f"saving {name}").request(lambda: self._saver.save(request), f"saving {name}")

    def save_checkpoint(self, name: str | None = None) -> Path | Acknowledgement[Path | None] | None:
        """Save the whole state: at the next step boundary while a run is live, else at once."""
        name = name or f"iter_{self.iter}"
        if self._thread is not None:
            return self.request_save(name)
        with self._hooks_listening():
            return self._saver.save(SaveRequest(check_name(name, "a checkpoint")))

    def load_checkpoint(self, path: str | Path) -> dict[str, Any]:
        """Take over the weights of a checkpoint, after hooks had their say, and return what it holds.

        Raises:
            CheckpointCorrupt: it is not what was written.
        """
        checkpoint = self._saver.load(path)
        event = AfterLoadCheckpoint(name=Path(path).name, epoch=self.epoch, iter=self.iter)
        with self._hooks_listening():
            self.bus.emit(event, {"runner": self, "checkpoint": checkpoint})
        self.model.load_state_dict(checkpoint["state_dict"])
        return checkpoint

    # --- hooks --------------------------------------------------------------------------------------------------------

    @property
    def hooks(self) -> list[HookLike]:
        """Every hook, in the order in which they were added."""
        return [entry.hook for entry in self._hook_entries]

    def register_hook(self, hook: HookLike, priority: int | str | Priority | None = None) -> None:
        """Add a hook or the config of one.

        Raises:
            ConfigError: it is not a hook, or its config does not fit.
        """
        entry = build_hook(hook, "hook")
        if priority is not None:
            entry = entry._replace(priority=get_priority(priority))
        check_subscribable([entry])
        self._hook_entries.append(entry)
        if self._residence.is_on(self.bus):
            self._residence.add(self.bus, entry)

    def call_hook(self, stage: str, **arguments: Any) -> None:
        """Call the method `stage(runner, ...)` of every hook that has one, for stages of your own."""
        for hook in self.hooks:
            method = getattr(hook, stage, None)
            if callable(method):
                method(self, **arguments)

    @contextmanager
    def _hooks_listening(self) -> Iterator[None]:
        """Have the hooks hear what is published outside of a run, too."""
        was_on = self._residence.is_on(self.bus)
        self._residence.take(self.bus, self._hook_entries)
        try:
            yield
        finally:
            if not was_on:
                self._residence.leave(self.bus)

    # --- state --------------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self.progress.epoch

    @property
    def iter(self) -> int:
        """Completed iterations."""
        return self.progress.iter

    @property
    def max_epochs(self) -> int | None:
        """Epochs to complete, or None without training."""
        return getattr(self.train_loop, "max_epochs", None)

    @property
    def max_iters(self) -> int | None:
        """Iterations to complete, or None where that is unknown."""
        return getattr(self.train_loop, "max_iters", None)

    @property
    def is_training(self) -> bool:
        """Whether a call of `train` is going on."""
        return self._running == "train"

    # --- the run's side -----------------------------------------------------------------------------------------------

    def loop(self, name: str) -> BaseLoop:
        """Return the train, val or test loop.

        Raises:
            ConfigError: its parts were not given.
        """
        loop: BaseLoop | None = getattr(self, f"{name}_loop")
        if loop is None:
            needs = "train_dataloader, train_cfg and optimizer" if name == "train" else f"{name}_dataloader"
            msg = f"{name}() needs {needs}, which the runner was not given"
            raise ConfigError(msg)
        return loop

    def take_up(self, name: str, thread: TrainingThread) -> None:
        """Begin a run: hooks on the bus, log files open."""
        self.bus.hub = self.message_hub
        if self.bus.name == self.experiment_name:
            self.bus.be_found()
        self._residence.take(self.bus, self._hook_entries)
        self._residence.live = True
        self._running, self._thread, self._context.thread = name, thread, thread
        if is_main_process():
            self.log_dir.mkdir(parents=True, exist_ok=True)
            self.logger.open(self.log_dir)
            self.bus.log_to(self.logger)
            self._describe_start(name)

    def lay_down(self) -> None:
        """End a run: nothing of it stays on the bus or open."""
        self._running = self._thread = self._context.thread = None
        self._residence.live = False
        self._residence.leave(self.bus)
        self.bus.log_to(None)
        self.logger.close()

    def prepare(self) -> None:
        """Load what `load_from` names, once; only then make room for checkpoints, because it may lie among the old ones."""
        if self._load_from is not None:
            path, self._load_from = self._load_from, None
            self.load_checkpoint(path)
            self.logger.info("loaded the weights of %s", path)
        if self.is_training and self.progress.iter == 0:
            self._saver.prepare()

    def _live_thread(self, what: str) -> TrainingThread:
        if self._thread is None:
            msg = f"{what} cannot take effect: no run of {self.experiment_name!r} is going on"
            raise RunEnded(msg)
        return self._thread

    def _describe_start(self, name: str) -> None:
        facts = {
            "experiment_name": self.experiment_name,
            "call": name,
            "seed": self.seed,
            "device": str(self.device),
            "hookbus_version": __version__,
            "torch_version": torch.__version__,
            "world_size": self.world_size,
        }
        (self.log_dir / "run.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        self.logger.info("%s of %r on %s, seed %d, logs in %s", name, self.experiment_name, self.device, self.seed, self.log_dir)
