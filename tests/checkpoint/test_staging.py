"""Copies for saving in the background: exact, independent of what they were taken from, and in memory that is used again."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hookbus.checkpoint import decode_state, encode_state
from hookbus.checkpoint.staging import StagingArea
from hookbus.errors import StateEncodingError
from tests.checkpoint.builders import assert_same, make_checkpoint, round_trip


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return a tensor of different values."""
    count = int(np.prod(shape))
    return torch.arange(1, count + 1).to(dtype).reshape(shape)


def with_metadata() -> OrderedDict[str, Any]:
    """Return what a module gives as its state."""
    return torch.nn.BatchNorm1d(3).state_dict()  # type: ignore[return-value]  # the stubs say dict


def shared() -> dict[str, torch.Tensor]:
    """Return views of one memory: the same, overlapping ones, and one of another dtype."""
    memory = numbers(12)
    return {
        "all": memory,
        "same": memory.view(12),
        "head": memory[:5],
        "tail": memory[3:],
        "matrix": memory.view(3, 4),
        "bits": memory.view(torch.int32),
    }


def filling_gaps() -> list[torch.Tensor]:
    """Return two views with gaps that fill one another's."""
    memory = numbers(10)
    return [memory[::2], memory[1::2]]


DTYPES = (torch.float64, torch.bfloat16, torch.bool, torch.int8, torch.complex64, torch.complex128, torch.float8_e4m3fn)

STATES: dict[str, Callable[[], Any]] = {
    "a whole checkpoint": lambda: make_checkpoint(3),
    "the state of a module": with_metadata,
    "views that overlap": shared,
    "gaps that are filled": filling_gaps,
    "gaps that are not": lambda: [(wide := numbers(6, 50))[:, 0], wide[:, 3], wide[:, :2]],
    "transposed": lambda: numbers(3, 4).T,
    "channels last": lambda: numbers(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded": lambda: numbers(1, 3).expand(5, 3),
    "conjugate and negative": lambda: [
        (complex_ := torch.complex(numbers(3), numbers(3))).conj(),
        complex_.conj().imag,
    ],
    "a middle without its ends": lambda: numbers(100)[40:50],
    "empty and without dimensions": lambda: [torch.empty(0, 3), torch.tensor(5.0), torch.empty(0, dtype=torch.bool)],
    "many dtypes": lambda: [
        numbers(3, dtype=dtype)
        for dtype in (
            torch.float64,
            torch.bfloat16,
            torch.bool,
            torch.int8,
            torch.complex64,
            torch.complex128,
            torch.float8_e4m3fn,
        )
    ],
    "parameters": lambda: list(torch.nn.Linear(2, 3).parameters()),
    "containers": lambda: {
        "ordered": OrderedDict(b=[1], a=(2, [3])),
        "default": defaultdict(list, x=[numbers(2)]),
        "counter": Counter("aab"),
        "deque": deque([[1], numbers(2)], maxlen=4),
        "sets": [{1, 2}, frozenset("ab")],
        "array": np.arange(3),
        "number": np.float32(0.5),
        5: b"bytes",
    },
    "nothing": dict,
}


def spoil(value: Any) -> None:
    """Change everything that can be changed in place."""
    if isinstance(value, torch.Tensor):
        spoil_tensor(value)
    elif isinstance(value, np.ndarray):
        value.fill(99)
    elif isinstance(value, dict):
        for item in value.values():
            spoil(item)
        value.clear()
    elif isinstance(value, list | deque | set):
        for item in value:
            spoil(item)
        value.clear()
    elif isinstance(value, tuple):
        for item in value:
            spoil(item)


def spoil_tensor(tensor: torch.Tensor) -> None:
    """Overwrite the memory of a tensor."""
    storage = tensor.detach().untyped_storage()
    if storage.nbytes():
        torch.empty(0, dtype=torch.uint8).set_(storage).fill_(0xAB)


@pytest.mark.parametrize("make", STATES.values(), ids=STATES)
def test_a_copy_gives_the_checkpoint_that_the_state_would_have_given(make: Callable[[], Any]) -> None:
    """Also when everything changes right after it was taken, and when the memory was used before."""
    area = StagingArea()
    area.stage(make_checkpoint(1))
    for _ in range(2):
        state = make()
        expected, document = round_trip(state), json.dumps(encode_state(state).document)
        staged = area.stage(state)
        spoil(state)
        assert json.dumps(encode_state(staged.wait()).document) == document
        assert_same(round_trip(staged.wait()), expected)


def test_fifty_copies_in_a_row_hold_what_was_there_when_each_was_taken() -> None:
    """The memory is made once."""
    area, model = StagingArea(), torch.nn.Linear(30, 20)
    area.stage(model.state_dict())
    size = area.size
    for number in range(50):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(number)
        staged = area.stage(model.state_dict())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(-1)
        assert all((tensor == number).all() for tensor in staged.wait().values())
        assert area.size == size


def test_the_memory_is_as_large_as_the_values_need() -> None:
    """What is shared counts once; of a view with gaps only its values; it grows where that is not enough, and can go."""
    area = StagingArea()
    memory = numbers(1024)
    area.stage([memory, memory, memory[10:], memory.view(32, 32).T])
    assert area.size == 4096
    area.stage([numbers(1024, 16)[:, 0]])
    assert area.size == 4096
    area.stage([memory, numbers(1)])
    assert area.size == 4096 + 64
    area.release()
    assert area.size == 0


def test_what_no_checkpoint_can_hold_is_left_for_the_encoder_to_refuse() -> None:
    """It says where; nothing is copied by the object's own rules."""

    class Wilful:
        def __deepcopy__(self, memo: object) -> Wilful:
            raise AssertionError

    lock, sparse = Wilful(), torch.eye(2).to_sparse()
    staged = StagingArea().stage({"lock": [lock], "sparse": sparse, "meta": torch.empty(2, device="meta")})
    assert staged.state["lock"][0] is lock
    assert staged.state["sparse"] is sparse
    with pytest.raises(StateEncodingError, match=r"lock\[0\]"):
        encode_state(staged.wait())


def test_what_contains_itself_is_refused_as_ever() -> None:
    """Rather than copied for ever."""
    circle: list[Any] = [1]
    circle += [circle, circle]
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    for state in (circle, deep):
        staged = StagingArea().stage({"state": state})
        with pytest.raises(StateEncodingError):
            encode_state(staged.wait())


def test_a_copy_may_be_read_on_its_own() -> None:
    """The tensors of the copy are plain ones on the host that share memory as the originals did."""
    state = shared()
    copied = StagingArea().stage(state).wait()
    copied["all"][4] = -1
    assert (copied["head"][4], copied["tail"][1], copied["matrix"][1, 0]) == (-1, -1, -1)
    encoded = encode_state(copied)
    assert_same(decode_state(encoded.document, encoded.tensors)["head"], copied["head"])
    assert state["all"][4] == 5
