"""Encoding and decoding: every value comes back exactly, or is refused with its path."""

from __future__ import annotations

import enum
import json
import math
import random
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from hookbus.checkpoint import decode_state, encode_state, read_tensors, tensor_chunks
from hookbus.checkpoint.statepath import MAX_DEPTH
from hookbus.checkpoint.tensor_file import TENSOR_DTYPES
from hookbus.errors import CheckpointCorrupt, StateEncodingError
from tests.checkpoint.builders import assert_same, round_trip

QUICK = settings(max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=6) | st.sampled_from(
    ["$tuple", "$x", "\ud83d\ude00", "\ud800"]
)
any_key = st.recursive(
    any_text | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none() | st.binary(max_size=4),
    lambda keys: st.lists(keys, max_size=3).map(tuple),
    max_leaves=3,
)
any_array = st_numpy.arrays(
    st.sampled_from(["?", "i1", "u1", "<i2", ">i4", "<u8", "<f2", "<f4", ">f8", "<c8", "<c16"]),
    st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
any_tensor = any_array.filter(lambda array: array.dtype.isnative).map(lambda array: torch.from_numpy(array.copy()))
any_number = any_array.filter(lambda array: array.size > 0).map(lambda array: array.reshape(-1)[0])
any_leaf = (
    st.none() | st.booleans() | st.integers() | st.integers(-(1 << 200), 1 << 200) | st.floats() | st.complex_numbers()
    | any_text | st.binary(max_size=8) | any_array | any_number | any_tensor
    | st.sampled_from([float("nan"), -0.0, float("-inf"), 10**300, torch.float16, torch.Size([0, 2])])
)  # fmt: skip
any_state = st.recursive(
    any_leaf,
    lambda states: (
        st.lists(states, max_size=4)
        | st.lists(states, max_size=3).map(tuple)
        | st.dictionaries(any_text, states, max_size=4)
        | st.dictionaries(any_key, states, max_size=4)
        | st.dictionaries(any_key, states, max_size=3).map(OrderedDict)
        | st.lists(states, max_size=3).map(lambda items: deque(items, maxlen=5))
        | st.sets(st.integers() | any_text, max_size=3)
        | st.frozensets(st.binary(max_size=2) | st.booleans(), max_size=3)
        | st.dictionaries(any_key, st.integers(), max_size=3).map(Counter)
        | st.dictionaries(any_key, states, max_size=3).map(lambda items: defaultdict(list, items))
    ),
    max_leaves=12,
)


VALUES: list[Any] = [
    float("nan"), float("inf"), float("-inf"), -0.0, 1e300, 5e-324, struct.unpack(">d", bytes.fromhex("fff8000000000001"))[0],
    complex(math.nan, -0.0), 10**5000, -(10**40), (1 << 64) - 1, True, 1, 1.0, "", "\ud83d\ude00", "\U0001f600", "\udcff", "\x00",
    b"\x00\xff", (), [], {}, set(), frozenset({1, "a", (2, b"x")}), {1: "a", "1": "b", None: 0, 2.5: 1, b"k": 2, (1, ("x",)): 3},
    {"$tuple": [1]}, {"a": {"$dict": []}}, OrderedDict([("b", 1), ("a", 2)]), Counter({30: 2, 10: 1}), deque([1, (2,)], maxlen=3),
    deque(), defaultdict(list, {"a": [1]}), defaultdict(None, {1: 2}), torch.float16, torch.device("cuda:1"), torch.Size([2, 0]),
    np.float32(0.1), np.float64(math.inf), np.float16(-0.0), np.bool_(True), np.int8(-3), np.uint64(2**64 - 1),
    np.complex64(1 + 2j), np.complex128(complex(math.nan, 1)), np.frombuffer(b"\x01\x00\xc0\x7f", "<f4")[0],
    np.array(7), np.zeros((0, 3), np.float16), np.array([True, False]), np.arange(6).reshape(2, 3).T, np.array([1, 2], ">u2"),
]  # fmt: skip


@QUICK
@given(any_state)
def test_any_state_comes_back_exactly(state: Any) -> None:
    """Nested containers with every kind of key and leaf keep types, bits and order."""
    assert_same(round_trip(state), state)


@pytest.mark.parametrize("value", VALUES, ids=[f"{type(value).__name__}-{index}" for index, value in enumerate(VALUES)])
def test_a_value_comes_back_exactly(value: Any) -> None:
    """Each supported kind of value, also at its limits, alone and inside containers."""
    assert_same(round_trip(value), value)
    assert_same(round_trip({"a": [value, (value,)]}), {"a": [value, (value,)]})


def test_plain_state_reads_like_ordinary_json() -> None:
    """Text, numbers, lists and dicts with text keys are written as anybody would write them."""
    state = {"name": "dé", "iter": 3, "lr": 0.1, "done": False, "best": None, "losses": [1.0, 2.5]}
    assert encode_state(state).document == state


def test_keys_that_look_like_tags_are_data() -> None:
    """A dict whose key starts with a dollar sign is written as pairs, so it can never be taken for a tag."""
    assert encode_state({"$tuple": [1]}).document == {"$dict": [["$tuple", [1]]]}


@pytest.mark.parametrize("dtype", [*TENSOR_DTYPES, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)], ids=str)
def test_a_tensor_of_any_dtype_and_shape_survives_the_file(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Scalars, empty tensors and matrices of every dtype go through a safetensors file unchanged."""
    count = math.prod(shape) * dtype.itemsize
    content = [index % 2 if dtype is torch.bool else (index * 37 + 11) % 256 for index in range(count)]
    tensor = torch.tensor(content, dtype=torch.uint8).view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
    encoded = encode_state([tensor])
    (tmp_path / "t.safetensors").write_bytes(b"".join(tensor_chunks(encoded.tensors)))
    assert_same(decode_state(encoded.document, read_tensors(tmp_path / "t.safetensors")), [tensor])


def test_tensors_of_mixed_widths_stay_aligned_in_the_file(tmp_path: Path) -> None:
    """Odd numbers of bytes next to wide items neither shift nor mix up values."""
    tensors = {f"{dtype}.{count}": torch.ones(count, dtype=dtype) for dtype in TENSOR_DTYPES for count in (1, 3)}
    (tmp_path / "t.safetensors").write_bytes(b"".join(tensor_chunks(tensors)))
    found = read_tensors(tmp_path / "t.safetensors")
    assert_same(dict(sorted(found.items())), dict(sorted(tensors.items())))


def test_a_parameter_comes_back_as_a_detached_tensor() -> None:
    """Gradients and the parameter class are not state."""
    found = round_trip([torch.nn.Parameter(torch.ones(2))])
    assert_same(found, [torch.ones(2)])


def test_tied_tensors_come_back_as_one_tensor() -> None:
    """Two names of one tensor are stored once and are one tensor again."""
    weight = torch.randn(3, 2)
    encoded = encode_state({"encoder": weight, "decoder": [weight.detach()]})
    assert list(encoded.tensors) == ["encoder"]
    found = round_trip({"encoder": weight, "decoder": [weight.detach()]})
    assert found["encoder"] is found["decoder"][0]
    assert_same(found["encoder"], weight)


def test_overlapping_views_come_back_as_views_of_one_memory() -> None:
    """A write through one of the restored views is seen through the others, as before saving."""
    base = torch.arange(12.0)
    views = {"all": base, "matrix": base.view(3, 4), "head": base[:5], "transposed": base.view(3, 4).T}
    found = round_trip(views)
    assert_same(found, {**views})
    found["head"][4] = 99
    assert found["all"][4] == found["matrix"][1, 0] == found["transposed"][0, 1] == 99
    assert found["transposed"].stride() == views["transposed"].stride()


def test_views_that_overlap_only_through_a_third_one_are_kept_together() -> None:
    """A long view reaches past a short one inside it, to a later one."""
    base = torch.arange(8.0)
    found = round_trip([base[:7], base[1:3], base[5:]])
    found[0][5] = 99
    assert found[2][0] == 99


def test_views_that_do_not_overlap_are_stored_apart() -> None:
    """Neighbours in one memory share no element, so each has its own values under its own name."""
    base = torch.arange(6.0)
    encoded = encode_state({"left": base[:3], "right": base[3:]})
    assert {name: tensor.tolist() for name, tensor in encoded.tensors.items()} == {"left": [0, 1, 2], "right": [3, 4, 5]}
    assert encoded.document == {"left": {"$tensor": "left"}, "right": {"$tensor": "right"}}


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(3, 4).T,
        torch.ones(1).expand(3, 2),
        torch.randn(4, dtype=torch.complex64).conj(),
    ],
    ids=["channels_last", "transposed", "expanded", "conjugated"],
)
def test_a_layout_without_gaps_keeps_its_strides(tensor: torch.Tensor) -> None:
    """Permuted and expanded tensors come back with the strides they had."""
    found = round_trip(tensor)
    assert_same(found, tensor)
    assert found.stride() == tensor.stride()


def test_a_view_with_gaps_keeps_its_values_only() -> None:
    """What lies between the elements of a view is not part of the state, and is not written."""
    column = torch.arange(12.0).view(3, 4)[:, 1]
    assert {name: tensor.tolist() for name, tensor in encode_state({"c": column}).tensors.items()} == {"c": [1, 5, 9]}
    assert_same(round_trip({"c": column}), {"c": column})


@QUICK
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 4)), max_size=5))
def test_any_views_of_one_memory_keep_their_values(specifications: list[tuple[int, int, int, int]]) -> None:
    """Whatever the offsets, sizes and strides, each view comes back equal."""
    base = torch.arange(40.0)
    views = [base.as_strided((size, 3), (step, inner), offset) for offset, size, step, inner in specifications]
    assert_same(round_trip(views), views)


OPTIMIZERS = [kind for kind in vars(torch.optim).values() if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)]


@pytest.mark.parametrize(
    "kind", [kind for kind in OPTIMIZERS if kind is not torch.optim.Optimizer], ids=lambda kind: kind.__name__
)
def test_every_torch_optimizer_goes_on_as_if_nothing_had_happened(kind: Any) -> None:
    """The state after two steps comes back in types and bits, and a new optimizer that loads it makes the same next steps."""
    torch.manual_seed(0)
    straight = make_optimizer(kind, torch.randn(3, 3))
    for _ in range(2):
        step(*straight)
    state = straight[0].state_dict()
    found = round_trip(state)
    assert_same(found, state)
    resumed = make_optimizer(kind, straight[1].detach())
    resumed[0].load_state_dict(found)
    for optimizer, parameter in (straight, resumed):
        torch.manual_seed(1)
        for _ in range(3):
            step(optimizer, parameter)
    assert_same(resumed[1].detach(), straight[1].detach())
    assert_same(resumed[0].state_dict(), straight[0].state_dict())


def make_optimizer(kind: Any, values: torch.Tensor) -> tuple[torch.optim.Optimizer, torch.nn.Parameter]:
    """Return an optimizer of one parameter, and that."""
    parameter = torch.nn.Parameter(values.clone())
    return kind([parameter], **({} if kind in (torch.optim.LBFGS, torch.optim.Muon) else {"lr": 0.1})), parameter


def step(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> None:
    """Make one step towards 0."""

    def closure() -> float:
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        if isinstance(optimizer, torch.optim.SparseAdam):
            parameter.grad = parameter.grad.to_sparse()  # type: ignore[union-attr]
        return float(loss.detach())

    optimizer.step(closure)


def make_scheduler(name: str, optimizer: torch.optim.Optimizer) -> Any:
    """Return a scheduler of that name with small options."""
    schedulers: Any = torch.optim.lr_scheduler
    options: dict[str, dict[str, Any]] = {
        "LambdaLR": {"lr_lambda": lambda step: 0.9**step},
        "MultiplicativeLR": {"lr_lambda": lambda step: 0.9},
        "StepLR": {"step_size": 1},
        "MultiStepLR": {"milestones": [1, 1, 3]},
        "ExponentialLR": {"gamma": 0.5},
        "CosineAnnealingLR": {"T_max": 4},
        "CyclicLR": {"base_lr": 0.1, "max_lr": 1.0},
        "OneCycleLR": {"max_lr": 1.0, "total_steps": 9},
        "CosineAnnealingWarmRestarts": {"T_0": 2},
        "SequentialLR": {"schedulers": [schedulers.ConstantLR(optimizer), schedulers.StepLR(optimizer, 2)], "milestones": [2]},
        "ChainedScheduler": {"schedulers": [schedulers.ConstantLR(optimizer), schedulers.StepLR(optimizer, 2)]},
    }
    if name == "ChainedScheduler":
        return schedulers.ChainedScheduler(**options[name])
    return getattr(schedulers, name)(optimizer, **options.get(name, {}))


@pytest.mark.parametrize("name", sorted(set(torch.optim.lr_scheduler.__all__) - {"LRScheduler", "SWALR"}))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_torch_scheduler_goes_on_as_if_nothing_had_happened(name: str) -> None:
    """A new scheduler that loads the state after two steps gives the same next learning rates."""
    straight, resumed = (make_scheduled(name) for _ in range(2))
    advance(*straight, count=2)
    state = [part.state_dict() for part in straight]
    found = round_trip(state)
    assert_same(found, state)
    for part, restored in zip(resumed, found, strict=True):
        part.load_state_dict(restored)
    assert advance(*resumed, count=5) == advance(*straight, count=5)


def make_scheduled(name: str) -> tuple[torch.optim.Optimizer, Any]:
    """Return an optimizer and a scheduler of that name for it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    return optimizer, make_scheduler(name, optimizer)


def advance(optimizer: torch.optim.Optimizer, scheduler: Any, count: int) -> list[tuple[float, float]]:
    """Step both, and return the learning rate and momentum after each step."""
    seen = []
    for _ in range(count):
        optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
        seen.append((float(optimizer.param_groups[0]["lr"]), float(optimizer.param_groups[0]["momentum"])))
    return seen


@pytest.mark.parametrize("best", [math.inf, -math.inf, math.nan])
def test_a_plateau_scheduler_keeps_a_best_value_that_is_not_finite(best: float) -> None:
    """JSON has no word for these; the state does."""
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([torch.ones(1)], lr=0.1))
    scheduler.best = best
    assert_same(round_trip(scheduler.state_dict())["best"], best)


def test_milestones_stay_whole_numbers() -> None:
    """A multi-step schedule looks its milestones up by number, so text keys would silence it."""
    optimizer = torch.optim.SGD([torch.ones(1)], lr=0.1)
    state = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5]).state_dict()
    assert_same(round_trip(state)["milestones"], Counter({2: 2, 5: 1}))


def test_random_generators_continue_where_they_were() -> None:
    """The states of Python's, numpy's and torch's generators are restored to the same next numbers."""
    generator = np.random.default_rng(7)
    states = (random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state(), generator.bit_generator.state)
    drawn = (random.random(), np.random.random(), torch.rand(1), generator.random())
    python_state, numpy_state, torch_state, generator_state = round_trip(states)
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    torch.set_rng_state(torch_state)
    generator.bit_generator.state = generator_state
    assert_same((random.random(), np.random.random(), torch.rand(1), generator.random()), drawn)


class Colour(enum.IntEnum):
    """An enum, which is a class of the user's."""

    RED = 1


class Text(str):
    """A subclass whose class could not be restored."""

    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        pytest.param(Colour.RED, "Colour", id="enum"),
        pytest.param(Text("x"), "Text", id="subclass"),
        pytest.param(print, "builtin_function_or_method", id="callable"),
        pytest.param(object(), "object object", id="object"),
        pytest.param(Path("x"), "Path", id="path"),
        pytest.param(torch.ones(2).to_sparse(), "sparse", id="sparse"),
        pytest.param(torch.ones(2, device="meta"), "meta device", id="meta"),
        pytest.param(torch.nn.UninitializedParameter(), "UninitializedParameter", id="tensor subclass"),
        pytest.param(torch.empty(2, dtype=torch.bits8), "torch.bits8", id="dtype"),
        pytest.param(np.array(["a"]), "<U1", id="text array"),
        pytest.param(np.array([None]), "object", id="object array"),
        pytest.param(np.float64(1).astype("M8[s]"), "datetime64", id="numpy date"),
        pytest.param(np.ma.masked_array([1.0]), "MaskedArray", id="array subclass"),
        pytest.param({frozenset({1}): 1}, "key", id="key"),
        pytest.param({Colour.RED: 1}, "key", id="enum key"),
        pytest.param({(1, np.int64(2)): 1}, "key", id="part of a key"),
        pytest.param(defaultdict(lambda: 1), "factory", id="factory"),
        pytest.param(torch.Generator(), "Generator", id="generator"),
    ],
)
def test_what_has_no_exact_form_is_refused_with_its_path(value: Any, words: str) -> None:
    """The message says where the value stands, what it is, and what is allowed."""
    with pytest.raises(StateEncodingError, match=r"optimizer\.state\[3\]\['momentum buffer'\]") as refused:
        encode_state({"optimizer": {"state": {3: {"momentum buffer": value}}}})
    assert words in str(refused.value)
    assert "allowed" in str(refused.value) or "keys may be" in str(refused.value)


def test_a_state_that_contains_itself_is_refused() -> None:
    """A cycle has no end to write; the same list twice has."""
    cycle: dict[str, Any] = {"inner": []}
    cycle["inner"].append(cycle)
    with pytest.raises(StateEncodingError, match=r"inner\[0\] contains itself"):
        encode_state(cycle)
    shared = [1]
    assert_same(round_trip([shared, shared]), [[1], [1]])


def test_the_depth_is_limited_on_both_sides() -> None:
    """The deepest state that can be written can be read, and one deeper is refused by name."""
    state: Any = 0
    for _ in range(MAX_DEPTH):
        state = (state,)
    assert_same(round_trip(state), state)
    with pytest.raises(StateEncodingError, match="nested"):
        encode_state((state,))
    key: Any = 0
    for _ in range(MAX_DEPTH + 1):
        key = (key,)
    with pytest.raises(StateEncodingError, match="nested"):
        encode_state({key: 1})
    with pytest.raises(CheckpointCorrupt, match="nested"):
        decode_state(json.loads("[" * 200 + "]" * 200), {})


@pytest.mark.parametrize(
    "document",
    [
        {"$object": "os.system"}, {"$tuple": {"a": 1}}, {"$tuple": [1], "x": 2}, {"$tuple": [1], "$list": []},
        {"$dict": [[1]]}, {"$dict": [[[], 1]]}, {"$dict": [[1, 2], [1, 3]]}, {"$set": [1, 1]}, {"$set": [[1]]}, {"$int": 5},
        {"$int": "zz"}, {"$float": "1.5"}, {"$float": 1}, {"$complex": [1.0]}, {"$bytes": "?"}, {"$string": "zz"},
        {"$dtype": "load"}, {"$dtype": ["float32"]}, {"$device": "nowhere:0"}, {"$size": [-1]}, {"$size": [True]},
        {"$tensor": "missing"}, {"$tensor": 3}, {"$tensor": "t", "shape": [5], "stride": [1], "offset": 0},
        {"$tensor": "t", "shape": [1], "stride": [1], "offset": 4},
        {"$tensor": "t", "shape": [2], "stride": [1, 1], "offset": 0},
        {"$tensor": "t", "shape": [2**70], "stride": [0], "offset": 0},
        {"$tensor": "t", "shape": [1], "stride": [1], "offset": -1}, {"$tensor": "t", "shape": [1]},
        {"$tensor": "t", "dtype": "bool"}, {"$array": "t", "dtype": "O"}, {"$array": "t", "dtype": "<f8"},
        {"$array": "t", "dtype": "<c16", "shape": [9]}, {"$array": "t", "dtype": ["<f8"]}, {"$number": "O", "value": 1},
        {"$number": "<i8"}, {"$number": "|i1", "value": 999}, {"$number": "<f4", "bytes": "00"},
        {"$number": "<f4", "value": "x"}, {"$deque": [1, 2], "maxlen": 1}, {"$deque": [], "maxlen": "x"},
        {"$default_dict": [], "factory": "open"}, {"$default_dict": [], "factory": ["list"]},
        {"$weight": "w", "file": "model.safetensors"}, {"$weight": "w"}, {"$ordered_dict": 3}, {"$counter": [["a"]]},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_a_document_the_encoder_never_writes_is_refused_with_its_path(document: Any) -> None:
    """Unknown tags, wrong shapes and names outside the closed tables are damage, and the message says where."""
    with pytest.raises(CheckpointCorrupt, match=r"hooks\[1\]"):
        decode_state({"hooks": [{"$tensor": "t"}, document]}, {"t": torch.zeros(4)})


def test_a_tensor_that_nothing_refers_to_is_refused() -> None:
    """Whatever was saved must be restored; a tensor without a place is damage."""
    with pytest.raises(CheckpointCorrupt, match="'left over'"):
        decode_state([], {"left over": torch.ones(1)})
