"""The runner: the parts of a run in one place, and the calls that start one."""

from __future__ import annotations

__all__ = ("Runner",)

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from hookbus._config import Constructor, copied, refuse, shown
from hookbus._named import check_name
from hookbus.bus import EventBus
from hookbus.device import default_device, mover
from hookbus.distributed import is_main_process, rank, world_size
from hookbus.errors import ConfigError
from hookbus.events import AfterLoadCheckpoint
from hookbus.hub import MessageHub
from hookbus.loading import release_workers
from hookbus.loops.base import BaseLoop, LoopContext
from hookbus.mailbox import Acknowledgement
from hookbus.priority import Priority, get_priority
from hookbus.progress import Progress
from hookbus.random_state import restore_rng_state
from hookbus.runner.assembly import (
    StepFunctions,
    build_dataloader,
    build_evaluation_loop,
    build_log_processor,
    build_options,
    build_schedulers,
    build_train_loop,
    compile_model,
)
from hookbus.runner.checks import config_problems
from hookbus.runner.committing import SaveRequest
from hookbus.runner.controls import RunControls
from hookbus.runner.defaults import HookEntry, build_hook, build_hooks, check_subscribable
from hookbus.runner.lifecycle import run_awaited, run_here
from hookbus.runner.logs import RunLogger, named_after, unused_timestamp
from hookbus.runner.optimizers import build_optim_wrapper
from hookbus.runner.randomness import Randomness
from hookbus.runner.residence import Residence
from hookbus.runner.resuming import Resumer, load_weights
from hookbus.runner.run_facts import describe_start
from hookbus.runner.saving import Saver
from hookbus.training_thread import TrainingThread
from hookbus.types import Backend, HookLike


class Runner(RunControls):
    """Trains, validates and tests a model, and publishes what happens as events.

    Parts are PyTorch objects or configs, `dict(type=...)`. A phase runs if its dataloader is given.

    Args:
        model: the module to train; moved to `device`.
        work_dir: where logs and checkpoints go.
        loss_fn: `loss_fn(model(inputs), targets)` for batches that are `(inputs, targets)`.
        train_step: `train_step(model, batch)`, for anything else; returns the loss, or a dict with the key `loss`.
        val_step: `val_step(model, batch)`; returns `(predictions, targets)`, or a dict of scalars.
        optimizer: a torch optimizer or a config, or a dict of these by name for a model that drives several.
        optim_wrapper: how it is used, `dict(accumulative_counts=1, clip_grad=None, dtype=None, loss_scale="dynamic")`.
        param_scheduler: a torch scheduler, a config, or a list of these.
        train_dataloader: yields the batches of one epoch; a dict gives the options of torch's own.
        val_dataloader: likewise, for validation.
        test_dataloader: likewise, for the test.
        train_cfg: `dict(max_epochs=..., val_begin=1, val_interval=1)`, or `dict(by_epoch=False, max_iters=...)`.
        val_cfg: `{}` where there is a dataloader; `dict(dtype="bfloat16")` evaluates under autocast.
        test_cfg: likewise.
        val_evaluator: a torchmetrics metric or collection, or a config.
        test_evaluator: likewise; that of the validation where left out.
        default_hooks: changes to the default hooks by name; None removes one.
        custom_hooks: further hooks or configs.
        load_from: a checkpoint whose weights to begin with.
        resume: True or the path of a checkpoint to go on from; `"auto"` starts fresh where there is none.
        allow: settings that may differ from those of the checkpoint to go on from, `"param_scheduler"` for instance.
        compile: whether to compile the forward pass of the model, or a dict of options for `torch.compile`.
        debug: whether to name, once each, handlers that read values from a device and so wait for it; on the CPU, too.
        device: where the model lives; what `torch.accelerator` says where left out.
        randomness: `dict(seed=..., deterministic=False, diff_rank_seed=False)`.
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
        optim_wrapper: Any = None,
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
        allow: Sequence[str] = (),
        compile: bool | Mapping[str, Any] = False,
        debug: bool = False,
        device: str | torch.device | None = None,
        randomness: Mapping[str, Any] | None = None,
        log_processor: Any = None,
        log_level: str | int = "INFO",
        experiment_name: str | None = None,
        bus: EventBus | None = None,
        hub: MessageHub | None = None,
    ) -> None:
        refuse(list(config_problems(locals())))
        self.work_dir = Path(work_dir).absolute()  # the program may go to another directory
        self.experiment_name = check_name(experiment_name or named_after(self.work_dir), "experiment_name")
        self.timestamp = unused_timestamp(self.work_dir)
        self.log_dir = self.work_dir / self.timestamp
        self.logger = RunLogger(self.experiment_name, log_level)
        self.log_processor = build_log_processor(log_processor)
        self.rank, self.world_size = rank(), world_size()
        self.randomness = Randomness(**build_options(Randomness, randomness, "randomness"))
        self.seed = self.randomness.seed_everything(self.rank)
        self.device = torch.device(device) if device is not None else default_device()
        self.model = model.to(self.device)
        self.progress = Progress()
        compile_model(self.model, compile)
        self.optim_wrapper = build_optim_wrapper(optimizer, optim_wrapper, model)
        self.param_schedulers = build_schedulers(param_scheduler, self.optim_wrapper, train_cfg)
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
        self.debug = debug
        self._load_from = load_from
        self._allow = (allow,) if isinstance(allow, str) else tuple(allow)
        self._resume = load_from if resume is True and load_from is not None else resume
        self._rng_state: Mapping[str, Any] | None = None
        self.running: str | None = None
        """Which call is going on: `train`, `val`, `test` or none."""
        self._thread: TrainingThread | None = None
        self._residence = Residence()
        # Taken last, so that what was prepared for a run is still there when a refused runner is corrected.
        self.message_hub = hub if hub is not None else MessageHub.for_run(self.experiment_name)
        self.bus = bus if bus is not None else EventBus.for_run(self.experiment_name)
        self._context.bus, self._context.hub = self.bus, self.message_hub
        if self.optim_wrapper is not None:
            self.optim_wrapper.attach(self.bus, self.message_hub, self.progress, {"runner": self}, lambda: self.max_iters)
        self._residence.take(self.bus, self._hook_entries)
        if self._residence.is_on(self.bus):
            self.bus.hub = self.message_hub

    @classmethod
    def from_config(cls, config: object, **parts: Any) -> Self:
        """Return the runner that a config describes, a dict of the arguments of a runner; it is data and left as it is.

        `parts` are further arguments: what no text can hold, such as the model and the dataloaders.

        Raises:
            ConfigError: names everything that is unknown, ill-typed, missing or does not fit, each with its path.
        """
        if not isinstance(config, Mapping):
            msg = f"config = {shown(config)}: expected a dict of the arguments of a runner"
            raise ConfigError(msg)
        twice = [f"config.{key} is also given as an argument; leave it out in one of the two" for key in config if key in parts]
        arguments, problems = Constructor.of(cls).fit(copied({**config, **parts}, "config", 1), "config", given={}, extra_keys=())
        defaults = {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
        known = {name: value for name, value in arguments.items() if name in defaults}
        if "model" in known and (twice or problems):  # else the constructor finds them
            problems += config_problems(defaults | known)
        refuse(twice + problems)
        return cls(**arguments)

    def __repr__(self) -> str:
        return f"<Runner {self.experiment_name!r}: epoch {self.epoch} of {self.max_epochs}, iteration {self.iter}>"

    # --- running ------------------------------------------------------------------------------------------------------

    def train(self, *, backend: Backend = "asyncio") -> dict[str, Any]:
        """Train on this thread until it is over; return the metrics of the last validation.

        Awaited handlers run on an event loop of its own thread, of the given backend. The first SIGINT or SIGTERM stops it at
        the next step boundary, as `stop` does, and then has its usual effect; a second one has it at once.
        """
        return run_here(self, "train", backend)

    def val(self, *, backend: Backend = "asyncio") -> dict[str, Any]:
        """Validate on this thread and return the metrics."""
        return run_here(self, "val", backend)

    def test(self, *, backend: Backend = "asyncio") -> dict[str, Any]:
        """Test on this thread and return the metrics."""
        return run_here(self, "test", backend)

    async def train_async(self, *, handle_signals: bool = False) -> dict[str, Any]:
        """Train on a thread of its own while the event loop stays free; cancelling stops at the next step boundary.

        With `handle_signals`, SIGINT and SIGTERM stop it there, too, as they do in `train`; otherwise they are the program's.
        """
        return await run_awaited(self, "train", handle_signals=handle_signals)

    async def val_async(self) -> dict[str, Any]:
        """Validate on a thread of its own and return the metrics."""
        return await run_awaited(self, "val")

    async def test_async(self) -> dict[str, Any]:
        """Test on a thread of its own and return the metrics."""
        return await run_awaited(self, "test")

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def save_checkpoint(self, name: str | None = None) -> Path | Acknowledgement[Path | None] | None:
        """Save the whole state: at the next step boundary while a run is live, else at once."""
        name = name or f"iter_{self.iter}"
        if self._thread is not None:
            return self.request_save(name)
        with self._hooks_listening():
            if self._resume is False:  # otherwise what lies there is what this runner is to go on from
                self._saver.prepare(self.iter)
            return self._saver.save(SaveRequest(check_name(name, "a checkpoint")))

    def load_checkpoint(self, path: str | Path, *, strict: bool = True) -> dict[str, Any]:
        """Take over the weights of a checkpoint, after hooks had their say, and return what it holds.

        Args:
            path: the directory of the checkpoint.
            strict: whether its weights must be exactly those of the model; otherwise what differs is logged.

        Raises:
            CheckpointCorrupt: it is not what was written.
            CheckpointError: no weight has the name of one of the model.
        """
        checkpoint = self._announced(Path(path), self._saver.load(path))
        load_weights(self.model, checkpoint["state_dict"], path, strict=strict, warn=self.logger.warning)
        return checkpoint

    def _announced(self, path: Path, checkpoint: dict[str, Any], *, resuming: bool = False) -> dict[str, Any]:
        """Let hooks edit what was read."""
        event = AfterLoadCheckpoint(name=path.name, epoch=self.epoch, iter=self.iter, resuming=resuming)
        with self._hooks_listening():
            self.bus.emit(event, {"runner": self, "checkpoint": checkpoint})
        if "averaged" in checkpoint and not any(getattr(hook, "keeps_averaged_weights", False) for hook in self.hooks):
            self.logger.warning("%s also holds averaged weights, which nothing uses: this run has no EMAHook", path)
        return checkpoint

    def restore_randomness(self) -> None:
        """Let the random generators go on where a checkpoint was taken; once, when training begins again."""
        if self._rng_state is not None:
            restore_rng_state(self._rng_state)
            self._rng_state = None

    # --- hooks --------------------------------------------------------------------------------------------------------

    @property
    def hooks(self) -> list[HookLike]:
        """Every hook in the order of priority, those of one priority in the order in which they were added."""
        return [entry.hook for entry in sorted(self._hook_entries, key=HookEntry.in_order)]

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
        """Call the method `stage(runner, ...)` of every hook that has one, in the order of priority, for stages of your own.

        Coroutines are awaited on the home loop while the training thread waits.

        Raises:
            RunEnded: a method is a coroutine function, and no run is going on whose loop could run it.
        """
        for hook in self.hooks:
            method = getattr(hook, stage, None)
            if inspect.iscoroutinefunction(method):
                thread = self._live_thread(f"{type(hook).__name__}.{stage}")
                thread.cross(partial(method, self, **arguments))
            elif callable(method):
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
        return self.running == "train"

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
        self.running, self._thread, self._context.thread = name, thread, thread
        self._saver.host = thread
        if is_main_process():
            self.log_dir.mkdir(parents=True, exist_ok=True)
            self.logger.open(self.log_dir)
            self.bus.log_to(self.logger)
            describe_start(self, name, sorted(self._hook_entries, key=HookEntry.in_order))

    def lay_down(self) -> None:
        """End a run: nothing of it stays on the bus, open or alive."""
        for loader in (self.train_dataloader, self.val_dataloader, self.test_dataloader):
            release_workers(loader)
        self._saver.release()  # not earlier, because handlers of AfterRun publish weights where it writes
        self.running = self._thread = self._context.thread = self._saver.host = None
        self._residence.live = False
        self._residence.leave(self.bus)
        self.bus.log_to(None)
        self.logger.close()

    def prepare(self) -> None:
        """Load what was asked for, once; only then make room for checkpoints, because it may lie among the old ones."""
        resume, self._resume = self._resume, False
        load_from, self._load_from = self._load_from, None
        resumer = Resumer(self, self._saver, resume, self._allow)
        found = resumer.find() if resume is not False else None
        if found is not None:
            self._announced(found.path, found.checkpoint, resuming=True)
            resumer.restore(found)
            self._rng_state = found.checkpoint.get("rng")
        elif load_from is not None:
            self.load_checkpoint(load_from, strict=False)
            self.logger.info("loaded the weights of %s", load_from)
        if self.is_training:
            self._saver.prepare(self.iter)

    def finish(self) -> None:
        """Bring what was begun during a run to an end, before its last event.

        Raises:
            CheckpointError: what was being written failed, or takes too long.
        """
        self._saver.finish()
