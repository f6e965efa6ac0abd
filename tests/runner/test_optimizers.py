"""The optimizers of a run, from what a user writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus.errors import ConfigError
from hookbus.events import AfterOptimizerStep, BeforeOptimizerStep
from hookbus.optim import OptimWrapper, OptimWrapperDict
from hookbus.runner.optimizers import build_optim_wrapper, optimizer_problems
from tests.runner.builders import make_loader, make_model, make_runner, record


class Adversaries(torch.nn.Module):
    """Two networks, each with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.nn.Linear(4, 4)
        self.discriminator = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())

    def train_step(self, batch: Any, optim_wrapper: OptimWrapperDict) -> dict[str, Any]:
        """Update one after the other."""
        inputs, targets = batch
        loss = torch.nn.functional.cross_entropy(self.discriminator(inputs), targets)
        optim_wrapper["discriminator"].update_params(loss)
        copying = (self.generator(inputs) - inputs).square().mean()
        optim_wrapper["generator"].update_params(copying)
        return {"loss": loss, "copying": copying}


SGD = dict(type="SGD", lr=0.1)
TWO = dict(generator=dict(type="Adam", lr=0.01), discriminator=SGD)
CLIP = dict(max_norm=1.0)


def sgd(model: torch.nn.Module) -> torch.optim.SGD:
    """Return an optimizer of all parameters of a model."""
    return torch.optim.SGD(model.parameters(), lr=0.1)


def parameters_of(wrapper: OptimWrapper) -> set[int]:
    """Return which parameters an optimizer updates."""
    return {id(parameter) for group in wrapper.param_groups for parameter in group["params"]}


@pytest.mark.parametrize(
    ("optimizer", "optim_wrapper", "expected"),
    [
        (SGD, None, {}),
        (SGD, {}, {}),
        (None, dict(optimizer=SGD), {}),
        (None, dict(type="OptimWrapper", optimizer=SGD, accumulative_counts=4), dict(accumulative_counts=4)),
        (SGD, dict(accumulative_counts=2, clip_grad=CLIP), dict(accumulative_counts=2)),
        (SGD, dict(dtype="bfloat16"), dict(dtype=torch.bfloat16)),
        (None, dict(type="AmpOptimWrapper", optimizer=SGD), dict(dtype=torch.float16)),
        (None, dict(type="AmpOptimWrapper", optimizer=SGD, dtype="bfloat16"), dict(dtype=torch.bfloat16)),
    ],
)
def test_one_optimizer_of_all_parameters(optimizer: Any, optim_wrapper: Any, expected: dict[str, Any]) -> None:
    """The options stand beside it or around it."""
    model = make_model()
    wrapper = build_optim_wrapper(optimizer, optim_wrapper, model)
    assert isinstance(wrapper, OptimWrapper)
    assert isinstance(wrapper.optimizer, torch.optim.SGD)
    assert parameters_of(wrapper) == set(map(id, model.parameters()))
    options = dict(accumulative_counts=1, dtype=None) | expected
    assert {name: getattr(wrapper, name) for name in options} == options


def test_objects_are_taken_as_they_are() -> None:
    """An optimizer is wrapped, a wrapper is not wrapped again, wherever it stands."""
    model = make_model()
    optimizer = sgd(model)
    wrapped = build_optim_wrapper(optimizer, None, model)
    assert isinstance(wrapped, OptimWrapper)
    assert wrapped.optimizer is optimizer
    inside = build_optim_wrapper(None, dict(optimizer=optimizer), model)
    assert isinstance(inside, OptimWrapper)
    assert inside.optimizer is optimizer
    several = OptimWrapperDict(whole=OptimWrapper(optimizer))
    for given in (wrapped, several):
        assert build_optim_wrapper(given, None, model) is given
        assert build_optim_wrapper(None, given, model) is given
    assert build_optim_wrapper(None, None, model) is None


@pytest.mark.parametrize("is_inside", [False, True])
def test_several_optimizers_take_the_submodules_of_their_names(is_inside: bool) -> None:
    """And each the options, in a wrapper of its own."""
    model = Adversaries()
    options = dict(accumulative_counts=2)
    if is_inside:
        wrappers = build_optim_wrapper(None, {"optimizer": TWO} | options, model)
    else:
        wrappers = build_optim_wrapper(TWO, options, model)
    assert isinstance(wrappers, OptimWrapperDict)
    assert [type(wrapper.optimizer).__name__ for wrapper in wrappers.values()] == ["Adam", "SGD"]
    assert {wrapper.accumulative_counts for wrapper in wrappers.values()} == {2}
    for name, wrapper in wrappers.items():
        assert wrapper.name == name
        assert parameters_of(wrapper) == set(map(id, model.get_submodule(name).parameters()))


def test_several_optimizers_may_be_objects_or_of_a_part_deeper_down() -> None:
    """An object says itself what it updates, so its name is free."""
    model = Adversaries()
    wrappers = build_optim_wrapper({"everything": sgd(model), "discriminator.0": SGD}, None, model)
    assert isinstance(wrappers, OptimWrapperDict)
    assert parameters_of(wrappers["everything"]) == set(map(id, model.parameters()))
    assert parameters_of(wrappers["discriminator.0"]) == set(map(id, model.discriminator.parameters()))


ELSEWHERE = sgd(make_model())
WRAPPED = OptimWrapper(ELSEWHERE)
BAD: list[tuple[str, Any, Any, list[str]]] = [
    ("no optimizer at all", "SGD", None, ["optimizer = 'SGD'", "a torch optimizer or a dict(type=...)"]),
    ("unknown optimizer", dict(type="SDG", lr=0.1), None, ["optimizer.type = 'SDG'", "'SGD'"]),
    ("unknown option", dict(type="SGD", lr=0.1, momentm=0.9), None, ["optimizer.momentm = 0.9", "'momentum'"]),
    ("no type", dict(typ="SGD", lr=0.1), None, ["optimizer.type is missing", "'typ'"]),
    ("nothing in the dict", {}, None, ["optimizer.type is missing"]),
    ("parameters of its own", dict(type="SGD", lr=0.1, params=[]), None, ["optimizer.params", "elsewhere"]),
    ("foreign parameters", ELSEWHERE, None, ["optimizer = SGD", "no parameter of the model Adversaries"]),
    ("foreign parameters, wrapped", None, WRAPPED, ["optim_wrapper = SGD", "no parameter of the model Adversaries"]),
    ("submodule that is none", dict(genrator=SGD), None, ["optimizer.genrator", "no submodule 'genrator'", "'generator'"]),
    ("unknown option of one of several", dict(generator=dict(type="SGD", l=1.0)), None, ["optimizer.generator.l = 1.0"]),
    ("one of several is none", dict(generator=SGD, discriminator=3), None, ["optimizer.discriminator = 3", "a torch optimizer"]),
    ("the same twice", dict(a=ELSEWHERE, b=ELSEWHERE), None, ["optimizer.b is the same SGD object as optimizer.a"]),
    ("a number as a name", {1: SGD}, None, ["optimizer has the key 1", "name"]),
    (
        "optimizer given twice",
        SGD,
        dict(optimizer=dict(type="Adam")),
        ["optim_wrapper.optimizer = ", "optimizer = ", "leave one"],
    ),
    ("optimizer beside a wrapper", SGD, WRAPPED, ["optimizer = ", "has its optimizer already", "leave one"]),
    ("options beside a wrapper", WRAPPED, dict(clip_grad=CLIP), ["optim_wrapper = ", "is wrapped already", "leave it out"]),
    ("options without optimizer", None, dict(clip_grad=CLIP), ["optim_wrapper = ", "there is no optimizer for it"]),
    ("options that are no dict", SGD, 4, ["optim_wrapper = 4", "OptimWrapperDict", "dict of options"]),
    ("unknown option of the wrapper", SGD, dict(clip_gard=CLIP), ["optim_wrapper.clip_gard = ", "'clip_grad'"]),
    ("unknown wrapper", SGD, dict(type="ApexOptimWrapper"), ["optim_wrapper.type = 'ApexOptimWrapper'", "'AmpOptimWrapper'"]),
    ("bad clipping", SGD, dict(clip_grad=dict(max_nrom=1.0)), ["optim_wrapper.clip_grad.max_nrom = 1.0", "'max_norm'"]),
    ("bad accumulation", SGD, dict(accumulative_counts=2.5), ["optim_wrapper.accumulative_counts = 2.5", "whole number"]),
    ("bad format", SGD, dict(dtype="fp16"), ["optim_wrapper.dtype = 'fp16'", "float16"]),
    ("bad scale", SGD, dict(type="AmpOptimWrapper", loss_scale="big"), ["optim_wrapper.loss_scale = 'big'", "'dynamic'"]),
]


@pytest.mark.parametrize(("optimizer", "optim_wrapper", "words"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_does_not_fit_is_refused(optimizer: Any, optim_wrapper: Any, words: list[str]) -> None:
    """In one error that says where, what, and what would do."""
    with pytest.raises(ConfigError) as caught:
        build_optim_wrapper(optimizer, optim_wrapper, Adversaries())
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text


def test_all_problems_are_found_at_once_and_nothing_is_built() -> None:
    """Those of the options and those of each optimizer."""
    optimizer = dict(genrator=SGD, discriminator=dict(type="SGD", lr="0.1"))
    problems = optimizer_problems(optimizer, dict(clip_grad=3, dtype="fp8", accumulate=2), Adversaries())
    places = [problem.split(" = ")[0].split(":")[0] for problem in problems]
    assert places == [
        "optim_wrapper.accumulate",
        "optim_wrapper.clip_grad",
        "optim_wrapper.dtype",
        "optimizer.genrator",
        "optimizer.discriminator.lr",
    ]
    assert optimizer_problems(TWO, dict(clip_grad=CLIP), Adversaries()) == []


@pytest.mark.parametrize(("spec", "name"), [(SGD, "Flatten"), (dict(part=SGD), "ReLU")])
def test_a_config_for_nothing_to_optimize_is_refused(spec: Any, name: str) -> None:
    """torch would speak of an empty parameter list."""
    model = torch.nn.Flatten()
    if "part" in spec:
        model.part = torch.nn.ReLU()
    with pytest.raises(ConfigError, match=f"'SGD': {name} has no parameters to optimize"):
        build_optim_wrapper(spec, None, model)


@pytest.mark.parametrize("form", [dict(type="LBFGS"), dict(type=torch.optim.LBFGS), torch.optim.LBFGS, OptimWrapper])
def test_an_optimizer_that_computes_the_loss_itself_needs_a_model_that_drives_it(form: Any) -> None:
    """Config or object, bare or wrapped."""
    for model in (make_model(), Adversaries()):
        lbfgs = torch.optim.LBFGS(model.parameters())
        given = form if isinstance(form, dict) else OptimWrapper(lbfgs) if form is OptimWrapper else lbfgs
        problems = optimizer_problems(given, None, model)
        assert len(problems) == (not hasattr(model, "train_step"))
        assert all("LBFGS: it computes the loss several times a step" in problem for problem in problems)


# --- in a run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("per_update", "updates_at"), [(1, [0, 1, 2, 3, 4, 5, 6, 7]), (3, [2, 5, 7]), (4, [3, 7]), (100, [7])])
def test_a_run_accumulates_through_its_epochs_and_updates_in_its_last_iteration(
    per_update: int, updates_at: list[int], tmp_path: Path
) -> None:
    """Two epochs of four iterations."""
    runner = make_runner(
        tmp_path, optimizer=SGD, optim_wrapper=dict(accumulative_counts=per_update), train_dataloader=make_loader(16)
    )
    steps = record(runner.bus, BeforeOptimizerStep)
    runner.train()
    assert [event.iter for event in steps if isinstance(event, BeforeOptimizerStep)] == updates_at


def test_a_run_of_a_length_that_nobody_knows_uses_what_is_left_in_the_end(tmp_path: Path) -> None:
    """The loader has no length, so the last group ends with the training."""

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([(torch.ones(4), torch.tensor(1))] * 16)

    loader = torch.utils.data.DataLoader(Stream(), batch_size=4)
    runner = make_runner(tmp_path, optimizer=SGD, optim_wrapper=dict(accumulative_counts=3), train_dataloader=loader)
    runner.train()
    assert isinstance(runner.optim_wrapper, OptimWrapper)
    assert runner.iter == 8
    assert runner.optim_wrapper.updates == 3


def test_a_run_records_the_norm_of_its_gradients(tmp_path: Path) -> None:
    """One value per update, in the hub of this run."""
    runner = make_runner(tmp_path, optimizer=SGD, optim_wrapper=dict(clip_grad=CLIP, accumulative_counts=2))
    runner.train()
    assert runner.message_hub.get_scalar("train/grad_norm").steps == [2, 4, 6]


def test_a_run_in_low_precision_learns(tmp_path: Path) -> None:
    """Overflows at the beginning do not count as updates."""
    wrapper = dict(type="AmpOptimWrapper", loss_scale=dict(init_scale=2.0**24))
    runner = make_runner(tmp_path, optimizer=SGD, optim_wrapper=wrapper, train_cfg=dict(max_epochs=8))
    steps = record(runner.bus, AfterOptimizerStep)
    runner.train()
    skipped = [event.skipped for event in steps if isinstance(event, AfterOptimizerStep)]
    assert skipped[0]
    assert isinstance(runner.optim_wrapper, OptimWrapper)
    assert 12 < runner.optim_wrapper.updates == skipped.count(False)
    losses, _ = runner.message_hub.get_scalar("val/loss").data
    assert losses[-1] < losses[0]


def test_a_run_with_two_optimizers(tmp_path: Path) -> None:
    """Both learn, and each records under its own name."""
    runner = make_runner(
        tmp_path,
        model=Adversaries(),
        optimizer=TWO,
        optim_wrapper=dict(clip_grad=CLIP),
        val_dataloader=None,
        test_dataloader=None,
    )
    runner.train()
    assert isinstance(runner.optim_wrapper, OptimWrapperDict)
    assert {name: wrapper.updates for name, wrapper in runner.optim_wrapper.items()} == {"generator": 6, "discriminator": 6}
    assert {"train/generator.grad_norm", "train/discriminator.grad_norm"} <= set(runner.message_hub.log_scalars)
