"""The one exact encoder: a state tree becomes a JSON document and named tensors.

Text, whole numbers, floats, booleans, None, lists and dicts with text keys look in JSON as one would write them by hand.
Everything else is an object whose first key starts with "$": `{"$tuple": [1, 2]}`. A dict with other keys than text, or with a
key that starts with "$", is a list of pairs: `{"$dict": [[3, "value"]]}`. What has no exact form is refused with its path;
nothing is approximated, and no class, function or module is ever named. `decode_state` is the inverse.

Not kept: that two places hold the very same list or dict (they come back as equal copies), `requires_grad`, and the memory
order of arrays. For tensors that share memory see `hookbus.checkpoint.sharing`.
"""

from __future__ import annotations

__all__ = ("EncodedState", "StoredWeight", "encode_state")

import base64
import math
import re
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch

from hookbus.checkpoint.sharing import TensorCollector, is_tensor
from hookbus.checkpoint.statepath import MAX_DEPTH, StatePath, spell_path
from hookbus.errors import StateEncodingError, describe_error

_ALLOWED = (
    "dict, list, tuple, set, frozenset, OrderedDict, defaultdict, Counter, deque, None, bool, int, float, complex, str, bytes, "
    "torch tensor, dtype, device and Size, numpy array and number"
)
_KEY_TYPES = (str, int, float, bool, type(None), bytes, tuple)
_FACTORIES: dict[Any, str | None] = {
    None: None,
    **{kind: kind.__name__ for kind in (bool, dict, float, int, list, set, str, tuple)},
}
_PLAIN_INT_LIMIT = 1 << 64
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class EncodedState:
    """A state in the two forms that files can hold."""

    document: Any
    """What `json.dumps(..., allow_nan=False)` accepts."""

    tensors: dict[str, torch.Tensor]
    """The contiguous CPU tensors that the document refers to, by name. They may share memory with the state."""


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """Stands in a state for a tensor that is stored under its own name in another file."""

    file: str
    name: str


def encode_state(tree: Any) -> EncodedState:
    """Return the document and the tensors from which `decode_state` rebuilds the tree exactly.

    CPU tensors are not copied, so the state must not change until the result is written.

    Raises:
        StateEncodingError: if a value has no exact form, contains itself, or is nested too deep; the message says where.
    """
    encoder = _Encoder()
    document = encoder.encode(tree, ())
    return EncodedState(document, encoder.tensors.store())


class _Encoder:
    def __init__(self) -> None:
        self.tensors = TensorCollector()
        self._open: set[int] = set()

    def encode(self, value: Any, path: StatePath) -> Any:
        encode_leaf = _LEAVES.get(type(value))
        if encode_leaf is not None:
            return encode_leaf(value)
        encode_container = _CONTAINERS.get(type(value))
        if encode_container is None:
            return self._encode_other(value, path)
        self._enter(value, path)
        document = encode_container(self, value, path)
        self._open.discard(id(value))
        return document

    def encode_items(self, values: Iterable[Any], path: StatePath) -> list[Any]:
        return [self.encode(value, (*path, index)) for index, value in enumerate(values)]

    def encode_pairs(self, mapping: Mapping[Any, Any], path: StatePath) -> list[Any]:
        return [[self.encode_key(key, path), self.encode(value, (*path, key))] for key, value in mapping.items()]

    def encode_key(self, key: Any, path: StatePath) -> Any:
        if type(key) not in _KEY_TYPES:
            message = (
                f"{spell_path(path)} has the key {_shorten(key)} of type {_type_name(key)}; "
                "keys may be str, int, float, bool, None, bytes and tuples of those"
            )
            raise StateEncodingError(message)
        if type(key) is tuple:
            self._check_depth(path)
            return {"$tuple": [self.encode_key(part, (*path, key)) for part in key]}
        return _LEAVES[type(key)](key)

    def _enter(self, value: Any, path: StatePath) -> None:
        if id(value) in self._open:
            message = f"{spell_path(path)} contains itself: the {_type_name(value)} is also one of its own parents"
            raise StateEncodingError(message)
        self._check_depth(path)
        self._open.add(id(value))

    def _check_depth(self, path: StatePath) -> None:
        if len(path) >= MAX_DEPTH:
            message = f"{spell_path(path[:5])}... is nested {len(path) + 1} containers deep; at most {MAX_DEPTH} are allowed"
            raise StateEncodingError(message)

    def _encode_other(self, value: Any, path: StatePath) -> Any:
        if is_tensor(value):
            return self.tensors.add(value, path)
        if type(value) is np.ndarray:
            return self._encode_array(value, path)
        if isinstance(value, np.generic):
            return self._encode_number(value, path)
        return _refuse(value, path)

    def _encode_array(self, array: np.ndarray[Any, Any], path: StatePath) -> dict[str, Any]:
        if array.dtype.str not in ARRAY_DTYPES:
            _refuse(array, path, f"an array of dtype {array.dtype}", f"arrays of {', '.join(ARRAY_DTYPES)}")
        if array.dtype.str in _TENSOR_ARRAY_DTYPES:
            name = self.tensors.add_values(torch.from_numpy(array.copy(order="C")), path)
            return {"$array": name, "dtype": array.dtype.str}
        content = torch.from_numpy(np.frombuffer(array.tobytes(), np.uint8).copy())
        return {"$array": self.tensors.add_values(content, path), "dtype": array.dtype.str, "shape": list(array.shape)}

    def _encode_number(self, number: np.generic, path: StatePath) -> dict[str, Any]:
        if number.dtype.str not in ARRAY_DTYPES:
            _refuse(number, path, f"a numpy scalar of dtype {number.dtype}", f"numbers of {', '.join(ARRAY_DTYPES)}")
        value = number.item()
        if number.dtype.type(value).tobytes() == number.tobytes():
            return {"$number": number.dtype.str, "value": _LEAVES[type(value)](value)}
        return {"$number": number.dtype.str, "bytes": number.tobytes().hex()}  # a NaN with bits of its own


def _refuse(value: Any, path: StatePath, what: str | None = None, allowed: str = _ALLOWED) -> NoReturn:
    shown = what or f"{_shorten(value)} of type {_type_name(value)}"
    message = f"{spell_path(path)} is {shown}, which a checkpoint cannot hold exactly; allowed: {allowed}"
    raise StateEncodingError(message)


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _shorten(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception as error:  # noqa: BLE001  a broken __repr__ must not hide where the value stands
        text = f"<no repr: {describe_error(error)}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_plain_text(text: str) -> bool:
    return text.isascii() or not _SURROGATE.search(text)


def _encode_text(text: str) -> Any:
    return text if _is_plain_text(text) else {"$string": text.encode("utf-8", "surrogatepass").hex()}


def _encode_int(value: int) -> Any:
    return value if -_PLAIN_INT_LIMIT < value < _PLAIN_INT_LIMIT else {"$int": hex(value)}


def _encode_float(value: float) -> Any:
    if math.isfinite(value):
        return value
    bits = struct.pack(">d", value).hex()
    return {"$float": str(value) if math.isinf(value) or bits == "7ff8000000000000" else bits}


def _encode_dict(encoder: _Encoder, value: dict[Any, Any], path: StatePath) -> Any:
    if all(type(key) is str and not key.startswith("$") and _is_plain_text(key) for key in value):
        return {key: encoder.encode(item, (*path, key)) for key, item in value.items()}
    return {"$dict": encoder.encode_pairs(value, path)}


def _encode_ordered_dict(encoder: _Encoder, value: OrderedDict[Any, Any], path: StatePath) -> Any:
    document = {"$ordered_dict": encoder.encode_pairs(value, path)}
    if hasattr(value, "_metadata"):  # module versions, which torch hangs on the state dict of a module
        document["metadata"] = encoder.encode(value._metadata, (*path, "_metadata"))
    return document


def _encode_default_dict(encoder: _Encoder, value: defaultdict[Any, Any], path: StatePath) -> Any:
    known = value.default_factory is None or isinstance(value.default_factory, type)
    if not known or value.default_factory not in _FACTORIES:
        names = ", ".join(str(name) for name in _FACTORIES.values())
        _refuse(value, path, f"a defaultdict with the factory {_shorten(value.default_factory)}", f"the factories {names}")
    return {"$default_dict": encoder.encode_pairs(value, path), "factory": _FACTORIES[value.default_factory]}


def _encode_set(tag: str) -> Callable[[_Encoder, Any, StatePath], Any]:
    return lambda encoder, value, path: {tag: sorted((encoder.encode_key(item, path) for item in value), key=repr)}


_NATIVE = [f"<{code}" for code in ("i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8")]
_TENSOR_ARRAY_DTYPES = frozenset(("|b1", "|i1", "|u1", *_NATIVE))
ARRAY_DTYPES = ("|b1", "|i1", "|u1", *_NATIVE, "<c16", *(f">{code[1:]}" for code in (*_NATIVE, "<c16")))

_LEAVES: dict[type, Callable[[Any], Any]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    int: _encode_int,
    float: _encode_float,
    str: _encode_text,
    bytes: lambda value: {"$bytes": base64.b64encode(value).decode()},
    complex: lambda value: {"$complex": [_encode_float(value.real), _encode_float(value.imag)]},
    torch.dtype: lambda value: {"$dtype": str(value).removeprefix("torch.")},
    torch.device: lambda value: {"$device": str(value)},
    torch.Size: lambda value: {"$size": list(value)},
    StoredWeight: lambda value: {"$weight": value.name, "file": value.file},
}
_CONTAINERS: dict[type, Callable[[_Encoder, Any, StatePath], Any]] = {
    dict: _encode_dict,
    list: lambda encoder, value, path: encoder.encode_items(value, path),
    tuple: lambda encoder, value, path: {"$tuple": encoder.encode_items(value, path)},
    deque: lambda encoder, value, path: {"$deque": encoder.encode_items(value, path), "maxlen": value.maxlen},
    set: _encode_set("$set"),
    frozenset: _encode_set("$frozenset"),
    OrderedDict: _encode_ordered_dict,
    Counter: lambda encoder, value, path: {"$counter": encoder.encode_pairs(value, path)},
    defaultdict: _encode_default_dict,
}
