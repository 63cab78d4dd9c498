"""Interprets the pickle of a state dict as data: nothing is imported, called or allocated beyond what stands in it.

PyTorch's own restricted unpickler runs no code either, but calls functions that take any amount of memory. What `torch.save`
writes for tensors needs two dozen of pickle's operations and five names; everything else is refused.
"""

import pickle
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

# A tensor takes about 25 operations: 80,000 tensors, in a few seconds.
MOST_OPERATIONS = 2_000_000
MOST_TEXT = 1 << 16  # bytes of one text or number: names of tensors have up to a hundred

STORAGES = {
    f"{kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
}
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
DICTIONARY, SIZE = "collections.OrderedDict", "torch.Size"
# Values that training scripts save beside their tensors, and that nobody reads here.
IGNORED = {
    f"torch.{name}"
    for name in ("device", "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
}


class ForeignNameError(Exception):
    """The pickle asks for something that is no tensor; the message is its name."""


class DamagedPickleError(Exception):
    """The bytes are no such pickle."""


@dataclass(frozen=True)
class Name:
    """Something that the pickle names: a function, or a class."""

    name: str


@dataclass(frozen=True)
class Ignored:
    """A value that nobody reads."""


@dataclass(frozen=True)
class StorageRecord:
    """Where a tensor's numbers are: `count` numbers of a storage's type, from number `start` of the storage `key` on."""

    kind: str
    key: str
    count: int
    start: int = 0


@dataclass(frozen=True)
class TensorRecord:
    """A tensor without its numbers: offset and strides in a storage, in numbers."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickle(stream: BinaryIO) -> Any:
    """Interpret the next pickle of a stream.

    Returns:
        Dictionaries, lists, tuples, texts, numbers and `TensorRecord`.

    Raises:
        ForeignNameError: it asks for something else.
        DamagedPickleError: it is damaged, or has more than `MOST_OPERATIONS`.
    """
    try:
        return _Interpreter(stream).run()
    except (LookupError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise DamagedPickleError(f"{type(error).__name__}: {error}") from None


class _Interpreter:
    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._left = MOST_OPERATIONS

    def run(self) -> Any:
        while True:
            self._spend(1)
            match self._read(1):
                case pickle.PROTO:
                    if self._number("<B") > 3:
                        raise ValueError("pickle protocol above 3; save with the default of torch.save")
                case pickle.STOP:
                    return self._stack.pop()
                case pickle.MARK:
                    self._marks.append(self._stack)
                    self._stack = []
                case pickle.NONE:
                    self._stack.append(None)
                case pickle.NEWTRUE:
                    self._stack.append(True)
                case pickle.NEWFALSE:
                    self._stack.append(False)
                case pickle.BININT:
                    self._stack.append(self._number("<i"))
                case pickle.BININT1:
                    self._stack.append(self._number("<B"))
                case pickle.BININT2:
                    self._stack.append(self._number("<H"))
                case pickle.LONG1:
                    self._stack.append(int.from_bytes(self._read(self._number("<B")), "little", signed=True))
                case pickle.BINFLOAT:
                    self._stack.append(self._number(">d"))
                case pickle.BINUNICODE:
                    self._stack.append(self._read(self._number("<I")).decode("utf-8", "surrogatepass"))
                case pickle.SHORT_BINSTRING:  # of Python 2
                    self._stack.append(self._read(self._number("<B")).decode("ascii"))
                case pickle.EMPTY_DICT:
                    self._stack.append({})
                case pickle.EMPTY_LIST:
                    self._stack.append([])
                case pickle.EMPTY_TUPLE:
                    self._stack.append(())
                case pickle.TUPLE:
                    items = self._marked()
                    self._stack.append(tuple(items))
                case pickle.TUPLE1:
                    self._stack[-1:] = [(self._stack[-1],)]
                case pickle.TUPLE2:
                    self._stack[-2:] = [tuple(self._stack[-2:])]
                case pickle.TUPLE3:
                    self._stack[-3:] = [tuple(self._stack[-3:])]
                case pickle.APPEND:
                    self._append([self._stack.pop()])
                case pickle.APPENDS:
                    self._append(self._marked())
                case pickle.SETITEM:
                    self._set(self._top(2))
                case pickle.SETITEMS:
                    self._set(self._marked())
                case pickle.BINPUT:
                    self._memo[self._number("<B")] = self._stack[-1]
                case pickle.LONG_BINPUT:
                    self._memo[self._number("<I")] = self._stack[-1]
                case pickle.BINGET:
                    self._stack.append(self._memo[self._number("<B")])
                case pickle.LONG_BINGET:
                    self._stack.append(self._memo[self._number("<I")])
                case pickle.GLOBAL:
                    self._stack.append(self._named(f"{self._line()}.{self._line()}"))
                case pickle.REDUCE:
                    function, arguments = self._top(2)
                    self._stack.append(self._called(function, arguments))
                case pickle.BUILD:  # attributes of a dictionary, such as PyTorch's _metadata
                    if type(self._top(1)[0]) is not dict or type(self._stack[-1]) is not dict:
                        raise ValueError("it sets attributes of something that is no dictionary")
                case pickle.BINPERSID:
                    self._stack.append(_storage(*self._stack.pop()))
                case other:
                    raise ValueError(f"it holds operation {other!r}")

    def _spend(self, operations: int) -> None:
        self._left -= operations
        if self._left < 0:
            raise ValueError(f"it takes more than {MOST_OPERATIONS:,} operations")

    def _read(self, count: int) -> bytes:
        if count > MOST_TEXT:
            raise ValueError(f"it holds a text of {count:,} bytes")
        content = self._stream.read(count)
        if len(content) < count:
            raise ValueError("it ends early")
        return content

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._read(struct.calcsize(form)))[0]

    def _line(self) -> str:
        return self._stream.readline(MOST_TEXT).decode("utf-8").rstrip("\n")

    def _marked(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _top(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("its stack is empty")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _append(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise ValueError("it appends to something that is no list")
        self._stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict:
            raise ValueError("it sets items of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):  # to hash nested tuples overflows the stack
                raise ValueError(f"a dictionary has a key that is {type(key).__name__}, expected text")
            target[key] = value

    def _named(self, name: str) -> Name | Ignored:
        module, _, kind = name.rpartition(".")
        known = name in (*PARAMETERS, *TENSORS, DICTIONARY, SIZE)
        if known or (kind in STORAGES and module in ("torch", "torch.cuda", "torch.storage")):
            return Name(name)
        if name in IGNORED:
            return Ignored()
        raise ForeignNameError(name)

    def _called(self, function: Any, arguments: Any) -> Any:
        if type(arguments) is not tuple:
            raise ValueError("it calls something with no list of arguments")
        if isinstance(function, Ignored):
            return function
        if not isinstance(function, Name):
            raise ValueError("it calls something that is no function")
        if function.name in TENSORS:
            storage, offset, shape, strides = arguments[:4]
            return TensorRecord(_instance(StorageRecord, storage), _size(offset), _sizes(shape), _sizes(strides))
        if function.name in PARAMETERS:
            return _instance(TensorRecord, arguments[0])
        if function.name == SIZE:
            return _sizes(arguments[0])
        if function.name == DICTIONARY:
            pairs = arguments[0] if arguments else []
            self._spend(len(pairs))  # it is copied
            return _dictionary(pairs)
        raise ForeignNameError(function.name)


def _dictionary(pairs: Any) -> dict[str, Any]:
    return {_instance(str, key): value for key, value in pairs}


def _storage(what: Any, kind: Any, key: Any, _place: Any, count: Any, view: Any = None) -> StorageRecord:
    """The storage that a persistent identifier names; `view` is (its own key, first number, numbers) in old files."""
    if what != "storage" or not isinstance(kind, Name):
        raise ValueError("it names something that is no storage")
    start = 0 if view is None else _size(view[1])
    return StorageRecord(kind.name.rpartition(".")[2], _instance(str, key), _size(count), start)


def _instance(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"found {type(value).__name__}, expected {kind.__name__}")
    return value


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"found {value!r:.40}, expected a size")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    return tuple(map(_size, values))
