"""InvalidLossHook: what becomes of a run whose loss is NaN or infinite, on the host and on a device.

CPU tensors stand for those of a device where its way is tested; a guard fails whatever reads a value out of one.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio.lowlevel
import pytest
import torch

from hookbus.errors import CheckpointError, ConfigError, InvalidLoss, RunEnded
from hookbus.events import AfterLoadCheckpoint, AfterTrainIter, BeforeSaveCheckpoint
from hookbus.hooks.invalid_loss import InvalidLossHook, LossInvalid
from hookbus.optim import OptimWrapper, OptimWrapperDict
from hookbus.optim.masking import MaskedUpdates, largest_unless_finite
from hookbus.runner import Runner
from hookbus.wire import decode_event, encode_event
from tests.parameters import slow_unless
from tests.runner.builders import at_iter, checkpoints, make_runner, record, same, weights
from tests.test_device_scalars import FakeEvent, no_reading

STEPS = 10
LOOPS: dict[str, dict[str, Any]] = {"by epoch": dict(max_epochs=2), "by iteration": dict(by_epoch=False, max_iters=STEPS)}
TURNS = slow_unless(
    lambda step, loop: step in (0, 4, 5, 9), [*enumerate([*LOOPS] * (STEPS // 2)), (1, "by epoch"), (8, "by iteration")]
)
"""Every step, under one of the loops in turn; at once those at the ends of a pass."""
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.AdamW(p, lr=0.05),
    "fused adam": lambda p: torch.optim.AdamW(p, lr=0.05, fused=True),
    "fused momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.05),
}
BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def make_net() -> torch.nn.Module:
    """Return a model whose forward pass changes buffers, too."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))


def batches(bad: dict[int, float] | None = None, number: int = STEPS) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the batches of a whole run; those named are poisoned."""
    generator = torch.Generator().manual_seed(1)
    good = [(torch.randn(4, 4, generator=generator), torch.randint(3, (4,), generator=generator)) for _ in range(number)]
    return [(inputs * (bad or {}).get(step, 1.0), targets) for step, (inputs, targets) in enumerate(good)]


class Passes:
    """Gives the batches of a run in passes of five."""

    def __init__(self, all_batches: list[Any]) -> None:
        self._passes = [all_batches[start : start + 5] for start in range(0, len(all_batches), 5)]

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[Any]:
        return iter(self._passes.pop(0))


def make(work_dir: Path, hook: InvalidLossHook, data: Any, *, save_every: int | None = 1, **changes: Any) -> Runner:
    """Return a runner of ten iterations that saves after every `save_every`."""
    model = changes.setdefault("model", make_net())
    checkpoint = None if save_every is None else dict(by_epoch=False, interval=save_every, save_last=False)
    options: dict[str, Any] = {
        "optimizer": OPTIMIZERS["momentum"](model.parameters()),
        "train_dataloader": Passes(data) if isinstance(data, list) else data,
        "val_dataloader": None,
        "default_hooks": dict(checkpoint=checkpoint, logger=None),
        "custom_hooks": [hook],
    }
    return make_runner(work_dir, **options | changes)


def train_by_hand(model: torch.nn.Module, optimizer: torch.optim.Optimizer, data: list[Any], schedule: Any = None) -> None:
    """Train as the runner does, on these batches."""
    for inputs, targets in data:
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if schedule is not None:
            schedule.step()


# --- the three policies, at each of ten steps ---------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "loop"), TURNS)
def test_raise_ends_the_run_in_the_iteration_of_the_loss(step: int, loop: str, tmp_path: Path) -> None:
    """The error says which loss, which value, and where; nothing of that iteration was saved."""
    runner = make(tmp_path, InvalidLossHook(), batches({step: math.nan}), save_every=5, train_cfg=LOOPS[loop])
    epoch = step // 5 + 1 if loop == "by epoch" else 1
    with pytest.raises(InvalidLoss, match=rf"^loss = nan in iteration {step + 1} \(epoch {epoch}\)") as caught:
        runner.train()
    assert isinstance(caught.value, FloatingPointError)
    assert runner.iter == step
    assert checkpoints(tmp_path) == ["iter_5"] * (step >= 5)


@pytest.mark.parametrize(("step", "loop"), TURNS)
def test_skip_is_a_training_without_that_batch(step: int, loop: str, tmp_path: Path) -> None:
    """Weights, buffers, optimizer and learning rate, bit for bit; what follows is saved."""
    hook = InvalidLossHook("skip")
    schedule = dict(type="ExponentialLR", by_epoch=False, gamma=0.9)
    runner = make(tmp_path, hook, batches({step: math.nan}), save_every=10, train_cfg=LOOPS[loop], param_scheduler=schedule)
    runner.train()
    model = make_net()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    train_by_hand(
        model, optimizer, batches()[:step] + batches()[step + 1 :], torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    )
    assert same(weights(runner.model), weights(model))
    assert runner.optim_wrapper.optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]  # type: ignore[union-attr]
    assert runner.iter == STEPS
    assert checkpoints(tmp_path) == ["iter_10"]
    history = runner.message_hub.get_scalar("train/invalid_losses")
    assert (history.data[0], history.steps, hook.invalid_losses) == ([1.0], [step + 1], 1)


@pytest.mark.parametrize(("step", "loop"), TURNS)
def test_rollback_is_restoring_by_hand(step: int, loop: str, tmp_path: Path) -> None:
    """Weights, optimizer and schedule are those of the newest checkpoint; data and counters go on."""
    schedule = dict(type="StepLR", by_epoch=False, step_size=3)
    save_every = 2 + step % 2
    options: dict[str, Any] = dict(save_every=save_every, train_cfg=LOOPS[loop], param_scheduler=schedule)
    runner = make(tmp_path, InvalidLossHook("rollback"), batches({step: math.nan}), **options)
    saved = step // save_every * save_every
    if not saved:
        with pytest.raises(CheckpointError, match=rf"^loss = nan in iteration {step + 1} .*: cannot roll back, because there is"):
            runner.train()
        return
    runner.train()
    model = make_net()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    train_by_hand(model, optimizer, batches()[:saved] + batches()[step + 1 :], scheduler)
    assert same(weights(runner.model), weights(model))
    assert runner.optim_wrapper.optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]  # type: ignore[union-attr]
    assert runner.iter == STEPS
    multiples = range(save_every, STEPS + 1, save_every)
    assert checkpoints(tmp_path) == sorted(f"iter_{number}" for number in multiples if number != step + 1)


def test_without_a_checkpoint_a_rollback_ends_the_run(tmp_path: Path) -> None:
    """The error says what happened and what to do."""
    runner = make(tmp_path, InvalidLossHook("rollback"), batches({0: math.nan}))
    with pytest.raises(CheckpointError, match=r"loss = nan .* there is no complete checkpoint in .*; save earlier"):
        runner.train()


@pytest.mark.parametrize("value", BAD)
def test_infinities_are_as_bad(value: str, tmp_path: Path) -> None:
    """The value is named."""

    def train_step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        loss: torch.Tensor = model(batch[0]).sum() + BAD[value]
        return loss

    runner = make(tmp_path, InvalidLossHook(), batches(), save_every=None, train_step=train_step)
    with pytest.raises(InvalidLoss, match=f"loss = {value} in iteration 1"):
        runner.train()


# --- rollback -----------------------------------------------------------------------------------------------------------


def test_rollbacks_in_a_row_are_limited(tmp_path: Path) -> None:
    """With no save between them; here each loss after the third is invalid."""
    runner = make(tmp_path, InvalidLossHook("rollback", max_rollbacks=2), batches(dict.fromkeys(range(3, STEPS), math.inf)))
    with pytest.raises(InvalidLoss, match=r"loss = nan in iteration 6 .*, after 2 rollbacks with no save in between"):
        runner.train()


def test_a_save_in_between_counts_as_progress(tmp_path: Path) -> None:
    """So a poisoned batch now and then does not end a run."""
    hook = InvalidLossHook("rollback", max_rollbacks=1)
    make(tmp_path, hook, batches({2: math.nan, 4: math.nan, 6: math.nan})).train()
    assert hook.invalid_losses == 3


def test_hooks_hear_of_a_rollback_and_may_edit_what_comes_back(tmp_path: Path) -> None:
    """As whenever a checkpoint is loaded."""
    runner = make(tmp_path, InvalidLossHook("rollback"), batches({STEPS - 1: math.nan}))

    @runner.bus.on(AfterLoadCheckpoint)
    def zero_bias(checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"]["2.bias"].zero_()

    runner.train()
    assert not runner.model.state_dict()["2.bias"].any()


def test_damaged_and_incomplete_checkpoints_are_left_out(tmp_path: Path) -> None:
    """The next older one is taken."""
    runner = make(tmp_path, InvalidLossHook("rollback"), batches({STEPS - 1: math.nan}))

    def spoil() -> None:
        (tmp_path / "checkpoints" / "iter_9" / "model.safetensors").write_bytes(b"")

    runner.bus.subscribe(AfterTrainIter, at_iter(STEPS - 1, spoil), priority="HIGHEST")
    runner.bus.subscribe(
        BeforeSaveCheckpoint, lambda checkpoint: checkpoint.pop("optimizer"), when=lambda event: event.name == "iter_8"
    )
    taken: list[Any] = record(runner.bus, AfterLoadCheckpoint)
    runner.train()
    assert [event.name for event in taken] == ["iter_7"]


def test_anybody_may_ask_for_a_rollback(tmp_path: Path) -> None:
    """The answer is the path; outside of a training there is nothing to roll back."""
    runner = make(tmp_path, InvalidLossHook(), batches())
    answers: list[Any] = []
    runner.bus.subscribe(AfterTrainIter, at_iter(4, lambda: answers.append(runner.request_rollback())))
    runner.train()
    assert answers[0].result().name == "iter_4"
    model = make_net()
    train_by_hand(model, OPTIMIZERS["momentum"](model.parameters()), batches()[:4] + batches()[5:])
    assert same(weights(runner.model), weights(model))
    with pytest.raises(RunEnded, match="no run of"):
        runner.request_rollback()


# --- what is saved ------------------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Although the loss is, whatever the policy; but somebody who saves by hand afterwards gets what there is."""
    runner = make(tmp_path, InvalidLossHook(interval=STEPS + 1), batches())

    def spoil() -> None:
        with torch.no_grad():
            next(runner.model.parameters()).fill_(math.nan)

    runner.bus.subscribe(AfterTrainIter, at_iter(7, spoil))
    runner.train()
    assert checkpoints(tmp_path) == sorted(f"iter_{number}" for number in range(1, 8))
    assert "iter_8 was not saved: a weight is not finite" in capsys.readouterr().err
    runner.save_checkpoint("by_hand")
    assert "by_hand" in checkpoints(tmp_path)


def test_the_best_checkpoint_is_never_an_invalid_one(tmp_path: Path) -> None:
    """Neither the newest: here every validation is said to be better than ever."""
    scores = iter(range(100))

    def val_step(model: torch.nn.Module, batch: Any) -> dict[str, float]:
        return {"score": float(next(scores))}

    hooks = dict(checkpoint=dict(save_best="score", rule="greater", max_keep_ckpts=1))
    options: dict[str, Any] = dict(default_hooks=hooks, val_step=val_step, val_dataloader=[0])
    make(tmp_path, InvalidLossHook("rollback"), batches({STEPS - 1: math.nan}), **options).train()
    assert checkpoints(tmp_path) == ["best_score_epoch_1", "epoch_1"]
    assert (tmp_path / "last_checkpoint").read_text() == "epoch_1"


# --- what is told -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["raise", "skip", "rollback"])
def test_an_event_tells_of_each_invalid_loss(policy: Any, tmp_path: Path) -> None:
    """Before the policy is applied; it goes over the wire as it is."""
    runner = make(tmp_path, InvalidLossHook(policy), batches({7: math.nan}), save_every=6)
    seen: list[Any] = record(runner.bus, LossInvalid)
    try:
        runner.train()
    except InvalidLoss:
        assert policy == "raise"
    (event,) = seen
    assert (event.key, event.epoch, event.iter, event.policy) == ("loss", 1, 7, policy)
    assert math.isnan(event.value)
    for format in ("json", "msgpack"):
        again = decode_event(encode_event(event, format), format)
        assert repr(again) == repr(event)
    json.loads(encode_event(event), parse_constant=pytest.fail)


async def test_a_run_inside_an_event_loop_is_watched_as_well(tmp_path: Path) -> None:
    """And coroutines hear of what happens while training waits for them."""
    runner = make(tmp_path, InvalidLossHook("rollback"), batches({6: math.nan}), save_every=3)
    seen: list[int] = []

    @runner.bus.on(LossInvalid)
    async def hear(iter: int) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(iter)

    await runner.train_async()
    assert seen == [6]
    assert all(tensor.isfinite().all() for tensor in runner.model.state_dict().values())


def test_another_output_may_be_watched(tmp_path: Path) -> None:
    """Also one that not every step returns; a misspelt one is an error that names the nearest."""

    def train_step(model: torch.nn.Module, batch: Any) -> dict[str, Any]:
        extra = {} if len(seen) == 2 else {"aux": math.nan if len(seen) == 3 else 0.0}
        seen.append(len(seen))
        return {"loss": model(batch[0]).sum(), **extra}

    seen: list[int] = []
    with pytest.raises(InvalidLoss, match="aux = nan in iteration 4"):
        make(tmp_path, InvalidLossHook(key="aux"), batches(), save_every=None, train_step=train_step).train()
    seen.clear()
    with pytest.raises(ConfigError, match=r"InvalidLossHook.key = 'aux_': .*did you mean 'aux'\? valid choices: loss, aux"):
        make(tmp_path, InvalidLossHook(key="aux_"), batches(), save_every=None, train_step=train_step).train()


@pytest.mark.parametrize("value", ["low", torch.zeros(2), [1.0]])
def test_what_is_no_number_is_refused(value: Any, tmp_path: Path) -> None:
    """The key is named."""

    def train_step(model: torch.nn.Module, batch: Any) -> dict[str, Any]:
        return {"loss": model(batch[0]).sum(), "aux": value}

    with pytest.raises(ConfigError, match="'aux' must be recorded as a number"):
        make(tmp_path, InvalidLossHook(key="aux"), batches(), save_every=None, train_step=train_step).train()


def test_an_interval_looks_at_some_losses(tmp_path: Path) -> None:
    """Weights that became NaN are found at the next look."""
    with pytest.raises(InvalidLoss, match="in iteration 6"):
        make(tmp_path, InvalidLossHook(interval=3), batches({3: math.nan}), save_every=None).train()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (dict(policy="rais"), r"InvalidLossHook.policy = 'rais': did you mean 'raise'\?"),
        (dict(interval=0), r"InvalidLossHook.interval = 0: expected a whole number of at least 1"),
        (dict(max_rollbacks=True), r"InvalidLossHook.max_rollbacks = True: expected a whole number"),
        (dict(policy="skip", interval=2), r"policy 'skip' looks at every iteration"),
        (dict(key=""), r"InvalidLossHook.key = ''"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], problem: str) -> None:
    """Each is named."""
    with pytest.raises(ConfigError, match=problem):
        InvalidLossHook(**options)


def test_the_count_goes_on_after_a_resume(tmp_path: Path) -> None:
    """It is part of every checkpoint."""
    first = make(tmp_path, InvalidLossHook("skip"), batches({2: math.nan}), train_cfg=LOOPS["by iteration"], save_every=7)
    first.bus.subscribe(AfterTrainIter, at_iter(6, first.stop))
    first.train()
    del first
    hook = dict(type="InvalidLossHook", policy="skip")
    second = make(tmp_path, hook, batches({8: math.nan})[5:], resume=True, save_every=7, train_cfg=LOOPS["by iteration"])  # type: ignore[arg-type]
    second.train()
    assert second.message_hub.get_scalar("train/invalid_losses").current() == 2


# --- skip, together with everything else ----------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_grad", [None, dict(max_norm=0.1)])
def test_with_accumulation_the_whole_group_is_left_out(clip_grad: Any, tmp_path: Path) -> None:
    """And the buffers keep nothing of the bad micro-batch and what came behind it in its group."""
    model = make_net()
    wrapper = OptimWrapper(OPTIMIZERS["momentum"](model.parameters()), accumulative_counts=2, clip_grad=clip_grad)
    runner = make(
        tmp_path,
        InvalidLossHook("skip"),
        batches({4: math.nan}),
        save_every=3,
        model=model,
        optimizer=None,
        optim_wrapper=wrapper,
    )
    runner.train()
    expected = make_net()
    plain = OptimWrapper(OPTIMIZERS["momentum"](expected.parameters()), accumulative_counts=2, clip_grad=clip_grad)
    for step, (inputs, targets) in enumerate(batches()):
        if step not in (4, 5):
            plain.update_params(torch.nn.functional.cross_entropy(expected(inputs), targets))
    assert same(weights(runner.model), weights(expected))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_low_precision_recovers_as_well(policy: Any, dtype: str, tmp_path: Path) -> None:
    """With a loss scaler, which leaves out updates of its own."""
    model = make_net()
    wrapper = OptimWrapper(OPTIMIZERS["momentum"](model.parameters()), dtype=dtype)  # type: ignore[arg-type]
    hook = InvalidLossHook(policy)
    runner = make(tmp_path, hook, batches({4: math.nan}), save_every=3, model=model, optimizer=None, optim_wrapper=wrapper)
    runner.train()
    assert all(tensor.isfinite().all() for tensor in runner.model.state_dict().values())
    assert hook.invalid_losses == 1


class Pair(torch.nn.Module):
    """Two models with an optimizer each; the first one gets a bad loss in its fourth iteration."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)
        self.steps = 0

    def train_step(self, batch: Any, optim_wrapper: Any) -> dict[str, Any]:
        """Train both."""
        factor = math.nan if self.steps == 3 else 1.0
        self.steps += 1
        first, second = self.first(batch[0]).square().mean() * factor, self.second(batch[0]).square().mean()
        optim_wrapper["first"].update_params(first)
        optim_wrapper["second"].update_params(second)
        return {"first": first, "second": second}


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_of_several_optimizers_each_is_judged_by_its_own_gradients(policy: Any, tmp_path: Path) -> None:
    """A rollback goes back with all of them."""
    model = Pair()
    optimizers = {
        "first": OPTIMIZERS["momentum"](model.first.parameters()),
        "second": OPTIMIZERS["adam"](model.second.parameters()),
    }
    hook = InvalidLossHook(policy, key="first")
    runner = make(tmp_path, hook, batches(), save_every=3, model=model, optimizer=optimizers)
    runner.train()
    assert hook.invalid_losses == 1
    assert isinstance(runner.optim_wrapper, OptimWrapperDict)
    assert [one.updates for one in runner.optim_wrapper.values()] == ([9, 10] if policy == "skip" else [10, 10])
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_a_finite_loss_with_gradients_that_are_not_is_left_out_and_told_of(tmp_path: Path) -> None:
    """The value is that of the largest gradient."""

    def train_step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        output = model(batch[0]).sum()
        loss: torch.Tensor = output - output if calls else output
        calls.append(1)
        return (loss * 0).sqrt() if len(calls) == 3 else loss  # the slope of the root is infinite there

    calls: list[int] = []
    hook = InvalidLossHook("skip")
    runner = make(tmp_path, hook, batches(), save_every=None, train_step=train_step)
    seen: list[Any] = record(runner.bus, LossInvalid)
    runner.train()
    assert [(event.iter, math.isfinite(event.value)) for event in seen] == [(2, False)]
    assert all(tensor.isfinite().all() for tensor in runner.model.state_dict().values())


@pytest.mark.parametrize(
    ("tensors", "largest"),
    [
        ([], None),
        ([torch.zeros(0), torch.ones(3)], None),
        ([torch.full((4,), 3e38)], None),
        ([torch.full((4,), 6e4, dtype=torch.float16), torch.ones(2, dtype=torch.float64)], None),
        ([torch.tensor([1 + 2j])], None),
        ([torch.ones(3), torch.tensor([1.0, math.inf, -math.inf])], math.inf),
        ([torch.ones(3, dtype=torch.bfloat16), torch.tensor([[math.nan, math.inf]])], math.nan),
        ([torch.tensor([complex(1, math.inf)])], math.inf),
    ],
)
def test_numbers_are_finite_or_not_whatever_their_sum_is(tensors: list[torch.Tensor], largest: float | None) -> None:
    """The sum is only the quick way to know; of half precision it is taken in full."""
    assert repr(largest_unless_finite(tensors)) == repr(largest)


def test_sparse_gradients_are_looked_at_too(tmp_path: Path) -> None:
    """Those of an embedding, for instance."""
    model = torch.nn.Embedding(5, 3, sparse=True)

    def train_step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        loss: torch.Tensor = model(batch[1]).sum() * (math.nan if batch[0].isnan().any() else 1)
        return loss

    hook = InvalidLossHook("skip")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    runner = make(
        tmp_path, hook, batches({3: math.nan}), save_every=None, model=model, optimizer=optimizer, train_step=train_step
    )
    runner.train()
    assert hook.invalid_losses == 1
    assert model.weight.isfinite().all()


# --- on a device --------------------------------------------------------------------------------------------------------


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeEvent]]:
    """Have CPU tensors taken for those of a device whose values arrive when the test says so, or are waited for."""
    for module in ("hookbus.hub", "hookbus.hooks.invalid_loss", "hookbus.optim.masking"):
        monkeypatch.setattr(f"{module}.on_device", lambda value: isinstance(value, torch.Tensor))
    monkeypatch.setattr(torch, "Event", FakeEvent)
    FakeEvent.everything_arrived = False
    yield FakeEvent
    FakeEvent.everything_arrived = True


class Unread:
    """Gives the batches of a run; while they last, whatever reads a tensor fails. The first ones may be waited for."""

    def __init__(self, data: list[Any], first: int = 1) -> None:
        self._data = data
        self._first = first

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[Any]:
        yield from self._data[: self._first]
        with no_reading():
            yield from self._data[self._first :]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("name", "step"), [*itertools.product(("momentum", "fused adam"), (0, 1, 5, 9)), ("fused momentum", 4)])
def test_on_a_device_skip_is_a_training_without_that_batch(step: int, name: str, tmp_path: Path) -> None:
    """And after the first update, which makes the state of the optimizer, nobody reads a tensor."""
    model, expected = make_net(), make_net()
    hook = InvalidLossHook("skip")
    data = Unread(batches({step: math.nan}), first=1 + (step == 0))
    optimizer = OPTIMIZERS[name](model.parameters())
    runner = make(tmp_path, hook, data, save_every=None, model=model, optimizer=optimizer, train_cfg=dict(max_epochs=1))
    runner.train()
    reference = OPTIMIZERS[name](expected.parameters())
    train_by_hand(expected, reference, batches()[:step] + batches()[step + 1 :])
    assert same(weights(runner.model), weights(expected))
    assert "found_inf" not in vars(optimizer)
    for mine, theirs in zip(optimizer.state.values(), reference.state.values(), strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert hook.invalid_losses == 1


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("policy", ["raise", "rollback"])
def test_watching_a_device_reads_nothing(policy: Any, tmp_path: Path) -> None:
    """In training by iterations, until its end."""
    runner = make(
        tmp_path,
        InvalidLossHook(policy),
        Unread(batches(number=60), first=0),
        save_every=None,
        train_cfg=dict(by_epoch=False, max_iters=60),
    )
    runner.train()
    assert runner.iter == 60


def arriving_at(work_dir: Path, device: type[FakeEvent], policy: Any) -> tuple[Runner, InvalidLossHook]:
    """Return a run of 60 iterations, the 4th one poisoned, in whose 41st the device has caught up; it saves after the 2nd."""
    hook, data = InvalidLossHook(policy), batches({3: math.nan}, number=60)
    runner = make(work_dir, hook, data, save_every=None, train_cfg=dict(by_epoch=False, max_iters=60))
    runner.bus.subscribe(AfterTrainIter, at_iter(1, lambda: runner.request_save("iter_2")))
    runner.bus.subscribe(AfterTrainIter, at_iter(40, lambda: setattr(device, "everything_arrived", True)), priority="HIGHEST")
    return runner, hook


def test_a_loss_on_a_device_is_seen_when_it_has_arrived(device: type[FakeEvent], tmp_path: Path) -> None:
    """The error names the iteration that it belongs to, not the one in which it was seen."""
    runner, _ = arriving_at(tmp_path, device, "raise")
    with pytest.raises(InvalidLoss, match=r"loss = nan in iteration 4 \(epoch 1\)"):
        runner.train()
    assert runner.iter == 40


def test_one_rollback_is_enough_for_everything_that_followed(device: type[FakeEvent], tmp_path: Path) -> None:
    """Losses that were still under way when the run went back are forgotten."""
    runner, hook = arriving_at(tmp_path, device, "rollback")
    rollbacks = record(runner.bus, AfterLoadCheckpoint)
    runner.train()
    assert len(rollbacks) == 1
    assert 16 <= hook.invalid_losses < 40
    model = make_net()
    data = batches(number=60)
    train_by_hand(model, OPTIMIZERS["momentum"](model.parameters()), data[:2] + data[41:])
    assert same(weights(runner.model), weights(model))


@pytest.mark.usefixtures("device")
def test_before_a_save_the_device_is_waited_for(tmp_path: Path) -> None:
    """So nothing invalid is saved, and a rollback follows at the same boundary."""
    runner = make(tmp_path, InvalidLossHook("rollback"), batches({6: math.nan}), train_cfg=LOOPS["by iteration"])
    runner.train()
    model = make_net()
    train_by_hand(model, OPTIMIZERS["momentum"](model.parameters()), batches()[:6] + batches()[7:])
    assert same(weights(runner.model), weights(model))
    assert "iter_7" not in checkpoints(tmp_path)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_updates_leave_no_trace(name: str) -> None:
    """For every kind of optimizer, at any step, also the very first."""
    for bad in (0, 1, 3):
        model, expected = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
        expected.load_state_dict(model.state_dict())
        mine, theirs = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](expected.parameters())
        masked = MaskedUpdates(mine)
        for step, (inputs, _) in enumerate(batches({bad: math.nan}, number=5)):
            model(inputs).square().sum().backward()
            if masked.begin(torch.tensor(step == bad)):
                mine.step()
            masked.settle()
            mine.zero_grad()
            if step != bad:
                expected(inputs).square().sum().backward()
                theirs.step()
                theirs.zero_grad()
        assert same(weights(model), weights(expected))
        states = copy.deepcopy([*mine.state.values()]), [*theirs.state.values()]
        for left, right in zip(*states, strict=True):
            assert all(torch.equal(left[key], right[key]) for key in right if isinstance(right[key], torch.Tensor))
