"""The inverse of the encoder: a JSON document and named tensors become the state tree again.

A document is data from outside: every tag, key and shape is checked, nothing in it is imported, called or looked up by name
anywhere but in the closed tables of this file, and whatever does not fit is a `CheckpointCorrupt` that says where.
"""

from __future__ import annotations

__all__ = ("decode_state",)

import base64
import binascii
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
import torch

from hookbus.checkpoint.encode import ARRAY_DTYPES
from hookbus.checkpoint.statepath import MAX_DEPTH, StatePath, spell_path
from hookbus.errors import CheckpointCorrupt, choices

_FACTORIES: dict[str | None, Any] = {
    None: None,
    **{kind.__name__: kind for kind in (bool, dict, float, int, list, set, str, tuple)},
}
_TORCH_DTYPES = {str(item).removeprefix("torch."): item for item in vars(torch).values() if isinstance(item, torch.dtype)}
_KEY_TYPES = (str, int, float, bool, type(None), bytes)


def decode_state(
    document: Any,
    tensors: Mapping[str, torch.Tensor],
    *,
    weights: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> Any:
    """Return the tree that `encode_state` was given. Its tensors are those passed in, or views of them.

    `weights` holds the tensors that the document takes from other files, by file and name.

    Raises:
        CheckpointCorrupt: if the document is not what the encoder writes, refers to a tensor that is not there, or leaves one
        unused.
    """
    decoder = _Decoder(tensors, weights or {})
    tree = decoder.decode(document, ())
    unused = sorted(set(tensors) - decoder.used)
    if unused:
        message = (
            f"the document does not refer to the tensors {', '.join(map(repr, unused[:5]))}; expected every tensor to be used"
        )
        raise CheckpointCorrupt(message)
    return tree


class _Decoder:
    def __init__(self, tensors: Mapping[str, torch.Tensor], weights: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        self.used: set[str] = set()
        self._tensors = tensors
        self._weights = weights
        self._shared: dict[tuple[Any, ...], torch.Tensor] = {}

    def decode(self, document: Any, path: StatePath) -> Any:
        if len(path) > MAX_DEPTH:
            _fail(path[:5], f"is nested more than {MAX_DEPTH} containers deep")
        if isinstance(document, dict):
            return self._decode_object(document, path)
        if isinstance(document, list):
            return self.decode_items(document, path)
        if document is None or isinstance(document, bool | int | float | str):
            return document
        return _fail(path, f"holds a {type(document).__name__}, expected what JSON can hold")

    def decode_items(self, documents: Any, path: StatePath) -> list[Any]:
        return [self.decode(document, (*path, index)) for index, document in enumerate(_expect(list, documents, path))]

    def decode_pairs(self, pairs: Any, path: StatePath) -> dict[Any, Any]:
        decoded: dict[Any, Any] = {}
        for index, pair in enumerate(_expect(list, pairs, path)):
            if not isinstance(pair, list) or len(pair) != 2:
                _fail(path, f"holds {_shown(pair)} as pair {index}, expected [key, value]")
            key = self.decode_key(pair[0], path)
            decoded[key] = self.decode(pair[1], (*path, key))
        if len(decoded) != len(pairs):
            _fail(path, "holds the same key twice")
        return decoded

    def decode_key(self, document: Any, path: StatePath) -> Any:
        key = self.decode(document, (*path, "key"))
        if not _is_key(key):
            _fail(
                path, f"holds a key of type {type(key).__name__}, expected str, int, float, bool, None, bytes or a tuple of those"
            )
        return key

    def decode_set(self, documents: Any, path: StatePath) -> set[Any]:
        decoded = {self.decode_key(document, path) for document in _expect(list, documents, path)}
        if len(decoded) != len(documents):
            _fail(path, "holds the same element twice")
        return decoded

    def tensor(self, node: dict[str, Any], path: StatePath) -> torch.Tensor:
        """Return the tensor, the very same one for every node that describes the same view."""
        stored = self._stored(node["$tensor"], path)
        if "dtype" in node:
            stored = _as_complex(stored, node["dtype"], path)
        if "shape" not in node and "stride" not in node and "offset" not in node:
            return self._shared.setdefault((node["$tensor"],), stored)
        shape, stride, offset = _view_of(node, stored, path)
        return self._shared.setdefault((node["$tensor"], shape, stride, offset), stored.as_strided(shape, stride, offset))

    def weight(self, node: dict[str, Any], path: StatePath) -> torch.Tensor:
        file, name = _expect(str, node.get("file"), path), _expect(str, node["$weight"], path)
        found = self._weights.get(file, {}).get(name)
        if found is None:
            _fail(path, f"refers to the tensor {name!r} of {file!r}, which is not there")
        return found

    def array(self, node: dict[str, Any], path: StatePath) -> np.ndarray[Any, Any]:
        stored, dtype = self._stored(node["$array"], path), _array_dtype(node.get("dtype"), path)
        if "shape" not in node:
            return _expect_dtype(np.asarray(stored.numpy()), dtype, path)
        shape = _sizes(node["shape"], path)
        content = stored.numpy().tobytes()
        if len(content) != int(np.prod(shape, dtype=object)) * dtype.itemsize:
            _fail(path, f"holds {len(content)} bytes, which is not an array of shape {shape} and dtype {dtype}")
        return np.frombuffer(content, dtype).reshape(shape).copy()

    def _stored(self, name: Any, path: StatePath) -> torch.Tensor:
        if not isinstance(name, str) or name not in self._tensors:
            _fail(path, f"refers to the tensor {_shown(name)}, which is not there")
        self.used.add(name)
        return self._tensors[name]

    def _decode_object(self, document: dict[str, Any], path: StatePath) -> Any:
        tag = next((key for key in document if key.startswith("$")), None)
        if tag is None:
            return {key: self.decode(value, (*path, key)) for key, value in document.items()}
        if tag not in _TAGS:
            _fail(path, f"has the unknown tag {tag!r}; {choices(tag, _TAGS)}")
        extras, decode_tag = _TAGS[tag]
        if not set(document) - {tag} <= set(extras):
            _fail(path, f"has the keys {sorted(document)}, expected {tag!r} and at most {list(extras)}")
        try:
            return decode_tag(self, document, path)
        except (ValueError, TypeError, RuntimeError, OverflowError, struct.error, binascii.Error) as error:
            if isinstance(error, CheckpointCorrupt):
                raise
            _fail(path, f"holds {_shown(document)}, which is not a valid {tag!r}: {error}", error)


def _fail(path: StatePath, problem: str, cause: BaseException | None = None) -> NoReturn:
    message = f"{spell_path(path)} {problem}"
    raise CheckpointCorrupt(message) from cause


def _shown(document: Any) -> str:
    text = repr(document)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _expect(kind: type, document: Any, path: StatePath) -> Any:
    if type(document) is not kind:
        _fail(path, f"holds {_shown(document)}, expected a {kind.__name__}")
    return document


def _is_key(key: Any) -> bool:
    return all(_is_key(part) for part in key) if type(key) is tuple else type(key) in _KEY_TYPES


def _sizes(document: Any, path: StatePath) -> tuple[int, ...]:
    if not isinstance(document, list) or not all(type(size) is int and size >= 0 for size in document):
        _fail(path, f"holds {_shown(document)}, expected a list of whole numbers from 0 up")
    return tuple(document)


def _view_of(node: dict[str, Any], stored: torch.Tensor, path: StatePath) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    shape, stride = _sizes(node.get("shape"), path), _sizes(node.get("stride"), path)
    offset = _sizes([node.get("offset")], path)[0]
    if len(shape) != len(stride) or 0 in shape:
        _fail(path, f"has shape {shape} and stride {stride}, expected as many of each and no empty dimension")
    reach = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
    if reach > stored.numel():
        _fail(path, f"reaches element {reach} of a stored tensor of {stored.numel()} elements")
    return shape, stride, offset


def _as_complex(stored: torch.Tensor, dtype: Any, path: StatePath) -> torch.Tensor:
    if dtype != "complex128" or stored.dtype is not torch.float64 or stored.shape[-1:] != (2,):
        _fail(path, f"is stored as {stored.dtype} of shape {tuple(stored.shape)}, expected the pairs of float64 of a complex128")
    return torch.view_as_complex(stored)


def _array_dtype(name: Any, path: StatePath) -> np.dtype[Any]:
    if name not in ARRAY_DTYPES:
        _fail(path, f"has the array dtype {_shown(name)}; valid choices: {', '.join(ARRAY_DTYPES)}")
    return np.dtype(str(name))


def _expect_dtype(array: np.ndarray[Any, Any], dtype: np.dtype[Any], path: StatePath) -> np.ndarray[Any, Any]:
    if array.dtype != dtype:
        _fail(path, f"is stored as {array.dtype}, expected {dtype}")
    return array


def _look_up(table: Mapping[Any, Any], name: Any, path: StatePath) -> Any:
    if not isinstance(name, str | None) or name not in table:
        _fail(path, f"names {_shown(name)}; valid choices: {', '.join(map(str, table))}")
    return table[name]


def _float(text: Any, path: StatePath) -> float:
    _expect(str, text, path)
    if text in ("nan", "inf", "-inf"):
        return float(text)
    return float(struct.unpack(">d", bytes.fromhex(text))[0])


def _real(document: Any, path: StatePath) -> float:
    return _float(document["$float"], path) if isinstance(document, dict) else float(_expect(float, document, path))


def _complex(decoder: _Decoder, node: dict[str, Any], path: StatePath) -> complex:
    real, imaginary = _expect(list, node["$complex"], path)
    return complex(_real(real, path), _real(imaginary, path))


def _number(decoder: _Decoder, node: dict[str, Any], path: StatePath) -> Any:
    dtype = _array_dtype(node["$number"], path)
    if "bytes" in node:
        return np.frombuffer(bytes.fromhex(_expect(str, node["bytes"], path)), dtype).reshape(())[()]
    value = decoder.decode(node.get("value"), path)
    if type(value) not in (bool, int, float, complex):
        _fail(path, f"holds {_shown(value)}, expected a number")
    return dtype.type(value)


def _ordered_dict(decoder: _Decoder, node: dict[str, Any], path: StatePath) -> OrderedDict[Any, Any]:
    decoded = OrderedDict(decoder.decode_pairs(node["$ordered_dict"], path))
    if "metadata" in node:
        decoded._metadata = decoder.decode(node["metadata"], (*path, "_metadata"))  # type: ignore[attr-defined]  # as torch does
    return decoded


def _counter(decoder: _Decoder, node: dict[str, Any], path: StatePath) -> Counter[Any]:
    counter: Counter[Any] = Counter()
    dict.update(counter, decoder.decode_pairs(node["$counter"], path))  # Counter.update would add, and may reorder
    return counter


def _deque(decoder: _Decoder, node: dict[str, Any], path: StatePath) -> deque[Any]:
    items, maxlen = decoder.decode_items(node["$deque"], path), node.get("maxlen")
    if maxlen is not None and (type(maxlen) is not int or maxlen < len(items)):
        _fail(path, f"has the maxlen {_shown(maxlen)}, expected null or a whole number of at least {len(items)}")
    return deque(items, maxlen)


def _default_dict(decoder: _Decoder, node: dict[str, Any], path: StatePath) -> defaultdict[Any, Any]:
    factory = _look_up(_FACTORIES, node.get("factory"), path)
    return defaultdict(factory, decoder.decode_pairs(node["$default_dict"], path))


_TAGS: dict[str, tuple[tuple[str, ...], Callable[[_Decoder, dict[str, Any], StatePath], Any]]] = {
    "$array": (("dtype", "shape"), lambda decoder, node, path: decoder.array(node, path)),
    "$bytes": ((), lambda decoder, node, path: base64.b64decode(_expect(str, node["$bytes"], path), validate=True)),
    "$complex": ((), _complex),
    "$counter": ((), _counter),
    "$default_dict": (("factory",), _default_dict),
    "$deque": (("maxlen",), _deque),
    "$device": ((), lambda decoder, node, path: torch.device(_expect(str, node["$device"], path))),
    "$dict": ((), lambda decoder, node, path: decoder.decode_pairs(node["$dict"], path)),
    "$dtype": ((), lambda decoder, node, path: _look_up(_TORCH_DTYPES, node["$dtype"], path)),
    "$float": ((), lambda decoder, node, path: _float(node["$float"], path)),
    "$frozenset": ((), lambda decoder, node, path: frozenset(decoder.decode_set(node["$frozenset"], path))),
    "$int": ((), lambda decoder, node, path: int(_expect(str, node["$int"], path), 16)),
    "$number": (("value", "bytes"), _number),
    "$ordered_dict": (("metadata",), _ordered_dict),
    "$set": ((), lambda decoder, node, path: decoder.decode_set(node["$set"], path)),
    "$size": ((), lambda decoder, node, path: torch.Size(_sizes(node["$size"], path))),
    "$string": (
        (),
        lambda decoder, node, path: bytes.fromhex(_expect(str, node["$string"], path)).decode("utf-8", "surrogatepass"),
    ),
    "$tensor": (("dtype", "shape", "stride", "offset"), lambda decoder, node, path: decoder.tensor(node, path)),
    "$tuple": ((), lambda decoder, node, path: tuple(decoder.decode_items(node["$tuple"], path))),
    "$weight": (("file",), lambda decoder, node, path: decoder.weight(node, path)),
}
