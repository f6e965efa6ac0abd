"""Keeps an average of the model's weights, and validates and tests with it."""

from __future__ import annotations

__all__ = ("EMAHook",)

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from hookbus._config import refuse, shown
from hookbus.averaging import AveragedWeights, Averager
from hookbus.averaging.weights import named_as
from hookbus.bus import on
from hookbus.errors import CheckpointError, choices
from hookbus.events import AfterRun, RunFailed
from hookbus.hooks.base import Hook
from hookbus.registry import AVERAGERS


class EMAHook(Hook):
    """Averages the weights behind each update of the optimizer; training itself goes on as it would without.

    The model has the average in it from `before_val_epoch` to `after_val_epoch`, and likewise in a test, and has its own weights
    back before anything can be saved. In a checkpoint `state_dict` holds the weights and `averaged` the average. An iteration
    counts if an optimizer took a step in it: a group of accumulated micro-batches counts once, an update that was left out does
    not. Until averaging begins, the average is what the model is.

    Args:
        ema_type: `"ExponentialMovingAverage"`, `"StochasticWeightAverage"`, `"MomentumAnnealingEMA"`, or one registered in
            `AVERAGERS`.
        strict_load: whether the averaged weights of a checkpoint must be exactly those of the model; otherwise what differs
            is logged.
        begin_iter: the iteration, counted from 1, with which averaging begins.
        begin_epoch: the epoch, counted from 1, with which averaging begins; one of the two at most.
        averager_options: options of the averager, such as `momentum`, `interval` and `update_buffers`.

    Raises:
        ConfigError: an option is unknown or makes no sense; names each.
    """

    priority: ClassVar[int | str] = "NORMAL"

    keeps_averaged_weights: ClassVar[bool] = True
    """Says that the checkpoints of the run have averaged weights."""

    def __init__(
        self,
        ema_type: str | type[Averager] = "ExponentialMovingAverage",
        strict_load: bool = False,
        begin_iter: int = 0,
        begin_epoch: int = 0,
        **averager_options: Any,
    ) -> None:
        own_options = {"strict_load": strict_load, "begin_iter": begin_iter, "begin_epoch": begin_epoch}
        config = {"type": ema_type, **averager_options}
        refuse(_problems(ema_type, **own_options) + _averager_problems(ema_type, averager_options, own_options))
        self.averager: Averager = AVERAGERS.build(config, path="EMAHook")
        self.strict_load = strict_load
        self.begin_iter = begin_iter
        self.begin_epoch = begin_epoch
        self._weights: AveragedWeights | None = None
        self._wrappers: tuple[Any, ...] = ()
        self._seen_updates = 0
        self._is_training = False

    # --- averaging ----------------------------------------------------------------------------------------------------

    def before_train(self, runner: Any) -> None:
        """Take the memory, and refuse what could not work.

        Raises:
            ConfigError: averaging would never begin, or the run has two averages.
        """
        refuse(_misfits(self, runner))
        self._weights_of(runner).allocate()
        self._wrappers = tuple(runner.optim_wrapper.wrappers().values())
        self._seen_updates = self._count_updates()
        self._is_training = True

    def after_train_iter(self, runner: Any, epoch: int, iter: int) -> None:
        """Take in the weights, if the iteration has changed them."""
        updates = self._count_updates()
        if updates != self._seen_updates:
            self._seen_updates = updates
            weights = self._weights
            assert weights is not None
            if iter + 1 >= self.begin_iter and epoch + 1 >= self.begin_epoch:
                weights.update()
            else:
                weights.follow()

    def after_train(self, runner: Any) -> None:
        """Take in the very last update."""
        self._catch_up(runner)

    def _catch_up(self, runner: Any) -> None:
        """Take in the update behind the last iteration, which finishes a group of accumulated micro-batches."""
        if self._is_training:
            self.after_train_iter(runner, runner.epoch, runner.iter)

    def _count_updates(self) -> int:
        return sum([wrapper.updates for wrapper in self._wrappers])

    # --- the exchange -------------------------------------------------------------------------------------------------

    def before_val_epoch(self, runner: Any) -> None:
        """Put the average into the model."""
        self._catch_up(runner)
        self._weights_of(runner).exchange()

    def before_test_epoch(self, runner: Any) -> None:
        """Put the average into the model."""
        self.before_val_epoch(runner)

    def after_val_epoch(self) -> None:
        """Give the model its own weights back."""
        self._restore()

    def after_val(self) -> None:
        """Give the model its own weights back, where the validation was stopped."""
        self._restore()

    def after_test_epoch(self) -> None:
        """Give the model its own weights back."""
        self._restore()

    def after_test(self) -> None:
        """Give the model its own weights back, where the test was stopped."""
        self._restore()

    @on(RunFailed, priority="HIGHEST")
    def run_failed(self) -> None:
        """Give the model its own weights back before anybody looks at it."""
        self._restore()

    @on(AfterRun, priority="HIGHEST")
    def after_run(self) -> None:
        """Give the model its own weights back, where the run was cancelled."""
        self._restore()
        self._is_training = False

    def _restore(self) -> None:
        if self._weights is not None:
            self._weights.restore()

    def _weights_of(self, runner: Any) -> AveragedWeights:
        """Return the average of the runner's model; a new one where this hook has not seen that model as it is."""
        before, now = self._weights, AveragedWeights(runner.model, self.averager)
        if before is not None and before.model is now.model:
            if before.layout == now.layout:
                return before
            runner.logger.warning("the model has other parameters than before, or elsewhere: their average begins anew")
        self._weights = now
        return now

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add the average.

        Raises:
            CheckpointError: the model has the average in it, so this is no moment to save.
        """
        weights = self._weights_of(runner)
        if weights.is_exchanged:
            msg = "nothing can be saved now: a validation or test is going on, for which the model has the averaged weights in it"
            raise CheckpointError(msg)
        self._catch_up(runner)
        checkpoint["averaged"] = weights.state_dict()
        checkpoint["hooks"][type(self).__name__] = self.state_dict()  # it may have caught up since

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any], name: str) -> None:
        """Take over the average, or begin with the weights where there is none.

        In the middle of training, as when it is rolled back, the count of updates goes back, too. Otherwise it begins anew, so
        that the first update begins a new average, unless the run is resumed: then `load_state_dict` follows.

        Raises:
            CheckpointError: averaged weights are missing, or there are others, and `strict_load` is set.
        """
        weights = self._weights_of(runner)
        averaged = checkpoint.get("averaged")
        weights.restore()
        weights.follow()
        if averaged is None:
            runner.logger.warning("%s holds no averaged weights: the average begins with its weights", name)
            return
        averaged = named_as(runner.model, averaged)
        self._compare(runner, averaged, weights.state_dict(), name)
        state = checkpoint.get("hooks", {}).get(type(self).__name__) if self._is_training else None
        if state is None or not state["follows"]:
            weights.load_state_dict(named_as(runner.model, checkpoint["state_dict"]) | averaged)
        if state is not None:
            weights.steps = state["steps"]

    def _compare(self, runner: Any, averaged: Mapping[str, Any], own: Mapping[str, Any], name: str) -> None:
        lacking = [key for key in own if key not in averaged]
        unknown = [key for key in averaged if key not in own]
        texts = {f"the averaged weights of {name} lack": lacking, f"the averaged weights of {name} also hold": unknown}
        for text, keys in texts.items():
            if keys and self.strict_load:
                msg = f"{text} {', '.join(keys)}; EMAHook has strict_load=True"
                raise CheckpointError(msg)
            if keys:
                runner.logger.warning("%s %s", text, ", ".join(keys))

    def state_dict(self) -> dict[str, Any]:
        """Return how many updates the average was told of, and whether it is what the model is."""
        weights = self._weights
        return {"steps": 0, "follows": True} if weights is None else {"steps": weights.steps, "follows": weights.follows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting; the average itself was loaded before, if the checkpoint has one."""
        if self._weights is not None and not self._weights.follows:
            self._weights.steps, self._weights.follows = state_dict["steps"], state_dict["follows"]


# --- what the options may be ------------------------------------------------------------------------------------------


def _problems(ema_type: object, strict_load: object, begin_iter: object, begin_epoch: object) -> list[str]:
    problems = []
    if not _is_averager(ema_type):
        known = choices(str(ema_type)[:100], AVERAGERS.names())
        problems.append(f"EMAHook.ema_type = {shown(ema_type)}: expected the name of an averager, or a subclass; {known}")
    if not isinstance(strict_load, bool):
        problems.append(f"EMAHook.strict_load = {shown(strict_load)}: expected True or False")
    begins = {"begin_iter": begin_iter, "begin_epoch": begin_epoch}
    for name, value in begins.items():
        if type(value) is not int or value < 0:
            problems.append(f"EMAHook.{name} = {shown(value)}: expected a whole number of at least 0")
    if not problems and begin_iter and begin_epoch:
        problems.append(f"EMAHook.begin_iter = {begin_iter}, EMAHook.begin_epoch = {begin_epoch}: expected one of the two")
    return problems


def _is_averager(ema_type: object) -> bool:
    if isinstance(ema_type, str):
        return ema_type in AVERAGERS
    return isinstance(ema_type, type) and issubclass(ema_type, Averager)


def _averager_problems(ema_type: object, options: Mapping[str, Any], own_options: Collection[str]) -> list[str]:
    """Return what the averager has no use for; a misspelt option may have been meant for the hook."""
    config = {"type": ema_type, **options}
    return AVERAGERS.check(config, path="EMAHook", extra_keys=tuple(own_options)) if _is_averager(ema_type) else []


def _misfits(hook: EMAHook, runner: Any) -> list[str]:
    """Return what does not fit a run."""
    problems = []
    others = [other for other in runner.hooks if getattr(other, "keeps_averaged_weights", False) and other is not hook]
    if others:
        problems.append(f"{type(hook).__name__} and {type(others[0]).__name__}: a run can have one average of its weights")
    if hook.begin_epoch and not runner.train_loop.by_epoch:
        problems.append(f"EMAHook.begin_epoch = {hook.begin_epoch}: this training counts iterations; give begin_iter")
    for name, maximum in (("begin_iter", runner.max_iters), ("begin_epoch", runner.max_epochs)):
        begin = getattr(hook, name)
        if maximum is not None and begin > maximum:
            problems.append(f"EMAHook.{name} = {begin}: averaging would never begin, training ends with {maximum}")
    return problems
