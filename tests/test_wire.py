"""Events on the wire: every one comes back as it was, and nothing else comes in."""

from __future__ import annotations

import enum
import math
import subprocess
import sys
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbus.errors import ConfigError
from hookbus.events import MOUNT_POINTS, AfterRun, AfterValEpoch, Event, MountPoint
from hookbus.wire import WireFormat, decode_event, encode_event

FORMATS: list[WireFormat] = ["json", "msgpack"]
QUICK = settings(max_examples=60, deadline=None)


class Colour(enum.Enum):
    """An enumeration in a field."""

    RED = "red"


class Point(msgspec.Struct, frozen=True):
    """A record in a field."""

    x: float
    y: float = 0.0


class Measured(Event):
    """An event whose fields have all sorts of types."""

    by_class: dict[int, float]
    shape: tuple[int, ...]
    pair: tuple[str, float]
    points: list[Point]
    blob: bytes
    tags: frozenset[str]
    colour: Colour = Colour.RED
    note: str | None = None
    anything: Any = None
    by_pair: dict[str, dict[int, list[float]]] = msgspec.field(default_factory=dict)


class Nothing(Event):
    """An event without fields."""


def same(left: Any, right: Any) -> bool:
    """Compare exactly: types, the sign of zero, and NaN as equal to itself."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return math.copysign(1, left) == math.copysign(1, right) and left == right if left == left else right != right
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, msgspec.Struct):
        return all(same(getattr(left, field), getattr(right, field)) for field in left.__struct_fields__)
    return bool(left == right)


numbers = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 0.0, 1e308, 5e-324])
integers = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(["$float", "$escaped", "nan", "event", "\0", "é😀"])
plain = st.recursive(
    st.none() | st.booleans() | integers | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
BY_HINT: dict[Any, st.SearchStrategy[Any]] = {
    int: integers,
    float: numbers,
    bool: st.booleans(),
    str: texts,
    dict[str, Any]: st.dictionaries(texts, plain, max_size=4),
}


def built_in(event_type: type[MountPoint]) -> st.SearchStrategy[Event]:
    """Make events of one type with any values in their fields."""
    hints = typing.get_type_hints(event_type)
    return st.builds(event_type, **{field: BY_HINT[hints[field]] for field in event_type.__struct_fields__})


measured = st.builds(
    Measured,
    by_class=st.dictionaries(integers, numbers, max_size=3),
    shape=st.lists(integers, max_size=3).map(tuple),
    pair=st.tuples(texts, numbers),
    points=st.lists(st.builds(Point, x=numbers, y=numbers), max_size=2),
    blob=st.binary(max_size=8),
    tags=st.frozensets(texts, max_size=3),
    note=st.none() | texts,
    anything=plain,
    by_pair=st.dictionaries(texts, st.dictionaries(integers, st.lists(numbers, max_size=2), max_size=2), max_size=2),
)


@pytest.mark.parametrize("format", FORMATS)
@given(event=st.one_of([built_in(event_type) for event_type in MOUNT_POINTS.values()]) | measured | st.just(Nothing()))
@settings(max_examples=400, deadline=None)
def test_every_event_comes_back_as_it_was(format: WireFormat, event: Event) -> None:
    """Built-in or a user's own, whatever is in its fields."""
    assert same(decode_event(encode_event(event, format), format), event)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "value", [{"$float": "nan"}, {"$float": 1}, {"$escaped": {"$float": math.nan}}, {"$escaped": 1}, [{"$float": {}}]]
)
def test_a_mapping_that_looks_like_the_wire_form_itself_comes_back(format: WireFormat, value: Any) -> None:
    """The escapes are escaped."""
    event = AfterValEpoch(epoch=0, iter=0, metrics={"value": value, "$float": value})
    assert same(decode_event(encode_event(event, format), format), event)


def test_a_twin_that_loses_infinities_is_found_out() -> None:
    """Plain JSON turns what it does not have into null; the comparison above notices."""
    event = AfterValEpoch(epoch=0, iter=0, metrics={"loss": math.inf})
    lossy = msgspec.convert(msgspec.json.decode(msgspec.json.encode(event)), AfterValEpoch)
    assert not same(lossy, event)
    assert not same(-0.0, 0.0)


def test_the_json_form_is_readable() -> None:
    """A tag and the fields by name."""
    event = AfterRun(epoch=0, iter=1, loop="val")
    assert msgspec.json.decode(encode_event(event)) == {"event": "hookbus.events:AfterRun", "epoch": 0, "iter": 1, "loop": "val"}


@pytest.mark.parametrize("format", FORMATS)
@given(junk=st.binary(max_size=40))
@QUICK
def test_junk_is_refused(format: WireFormat, junk: bytes) -> None:
    """With the one error that says so, whatever the bytes."""
    with pytest.raises(ConfigError):
        decode_event(junk, format)


@pytest.mark.parametrize("format", FORMATS)
@given(value=plain, tag=plain | st.just("hookbus.events:AfterValEpoch"))
@QUICK
def test_a_well_formed_message_that_is_no_event_is_refused(format: WireFormat, value: Any, tag: Any) -> None:
    """Also with a tag of any type, and with fields of the wrong ones."""
    encode = msgspec.json.encode if format == "json" else msgspec.msgpack.encode
    for message in (value, {"event": tag}, {"event": tag, "epoch": value, "iter": "x", "metrics": 3}):
        with pytest.raises(ConfigError):
            decode_event(encode(message), format)


@pytest.mark.parametrize("cut", range(0, 55, 6))
@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_event_is_refused(format: WireFormat, cut: int) -> None:
    """No half event comes in."""
    data = encode_event(AfterRun(epoch=0, iter=0, loop="train"), format)
    assert cut < len(data)
    with pytest.raises(ConfigError):
        decode_event(data[:cut], format)


@pytest.mark.parametrize(
    "junk",
    [
        b'{"event": []}',
        b'{"event": {}}',
        b'{"event": null}',
        b'{"$float": "abc"}',
        b'{"event": "hookbus.events:AfterRun", "epoch": {"$float": []}}',
        b'{"event": "hookbus.events:AfterRun", "epoch": {"$escaped": 5}}',
        b'{"event": "hookbus.events:AfterRun", "epoch": 1, "iter": 1}',
        b'{"event": "hookbus.events:AfterRun", "epoch": 1, "iter": 1.5, "loop": "train"}',
        b"\xff",
        b'"\xff"',
        b"[" * 100_000,
    ],
)
def test_hostile_json_is_refused(junk: bytes) -> None:
    """Wrong tags, wrong escapes, wrong types, wrong encoding, a tower of brackets."""
    with pytest.raises(ConfigError):
        decode_event(junk)


@pytest.mark.parametrize("junk", [b"\x91" * 100_000, b"\xa1\xff", b"\x81\xa5event\x90", b"\xc7\x00\x05", b"\x81\x81\x01\x01\x01"])
def test_hostile_msgpack_is_refused(junk: bytes) -> None:
    """Towers, wrong text, wrong tags, extensions, keys that cannot be keys."""
    with pytest.raises(ConfigError):
        decode_event(junk, "msgpack")


def test_an_unknown_event_gets_the_nearest_known_one() -> None:
    """A misspelt tag is answered like a misspelt name."""
    with pytest.raises(ConfigError, match=r"did you mean 'hookbus\.events:AfterRun'"):
        decode_event(b'{"event": "hookbus.events:AfterRnu"}')


@pytest.mark.parametrize("tag", ["os:system", "antigravity:Event", "hookbus.runner:Runner", "builtins:dict"])
def test_nothing_that_a_tag_names_is_imported(tag: str) -> None:
    """Decoding looks among the events that are defined and goes no further."""
    probe = f"""
import sys
from hookbus.wire import decode_event
before = set(sys.modules)
try:
    decode_event(b'{{"event": "{tag}"}}')
except ValueError as error:
    print("unknown event" in str(error), sorted(set(sys.modules) - before))
"""
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert result.stdout == "True []\n"


def itself() -> list[Any]:
    """Return a list that contains itself."""
    tower: list[Any] = []
    tower.append(tower)
    return tower


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "value", [object(), 2**70, "\ud800", itself(), 1j], ids=["object", "big", "surrogate", "itself", "complex"]
)
def test_what_has_no_wire_form_is_refused_when_encoding(format: WireFormat, value: Any) -> None:
    """An event that would not come back does not go out; JSON alone has numbers of any size."""
    event = AfterValEpoch(epoch=0, iter=0, metrics={"value": value})
    if format == "json" and value == 2**70:
        assert decode_event(encode_event(event)) == event
        return
    with pytest.raises(ConfigError, match="AfterValEpoch has no wire form"):
        encode_event(event, format)


def test_an_unknown_format_is_refused() -> None:
    """Both ways, with the choices."""
    with pytest.raises(ConfigError, match="valid choices: json, msgpack"):
        encode_event(Nothing(), "yaml")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ConfigError, match="did you mean 'msgpack'"):
        decode_event(b"", "msgpak")  # type: ignore[arg-type]  # what is tested
