"""Compiled loops that start without their compiler.

`@kernel` marks a function that Numba compiles. What Numba made of it for given argument types is kept as
machine code, a shared library a function and signature, so that the next process calls it in
a millisecond and never imports Numba, which alone takes half a second. Kernels call each other as if they
were plain functions; only what Python calls is kept.

A library's name holds a digest of everything it depends on: the code of the function and of those it calls,
the constants they name, the argument types, the versions of Python, Numba and LLVM, and the processor.
Nothing outdated is ever found, and a shared cache folder serves unlike machines. Where something is
missing or unsupported (no folder to write to, Windows, an argument that is no array or number,
`LOOM_KERNELS=numba`), Numba itself runs the function, and the result is the same.

The machine code follows Numba's own calling convention: a pointer for the result, one for an error, then every
array as seven or more numbers. The arrays it allocates come from `malloc` and belong to the caller.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import re
import sys
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import xxhash

FORMAT = 2  # of what is kept; another number makes every kernel anew
MAGIC = b"loom kernel\n"
SYMBOL = "loom_kernel"


class Kernel:
    """A function for Numba, called through kept machine code wherever there is some for its arguments."""

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
        assert isinstance(function, FunctionType)
        self.function = function
        self.options = options
        self.__name__, self.__doc__, self.__module__ = (
            function.__name__,
            function.__doc__,
            function.__module__,
        )
        self.__wrapped__ = function
        self._ready: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._lock = threading.Lock()
        self._dispatcher: Any = None

    def __repr__(self) -> str:
        return f"<kernel {self.__module__}.{self.__name__}>"

    def __call__(self, *arguments: Any) -> Any:
        key = tuple([_type(value) for value in arguments])
        call = self._ready.get(key)
        if call is None:
            call = self._prepare(key)
        return call(*arguments)

    def _prepare(self, key: tuple[Any, ...]) -> Callable[..., Any]:
        with self._lock:
            if key not in self._ready:
                self._ready[key] = _kept(self, key) or self.dispatcher
            return self._ready[key]

    @property
    def dispatcher(self) -> Any:
        """Numba's own compiled function, its globals those of the module with Numba's functions for kernels."""
        if self._dispatcher is None:
            with COMPILING:
                if self._dispatcher is None:
                    from loom.native.compile import dispatcher

                    self._dispatcher = dispatcher(self)
        return self._dispatcher

    def parts(self) -> list[Kernel]:
        """This kernel and those it calls, each once."""
        found = {id(self): self}
        for value in named(self.function):
            if isinstance(value, Kernel):
                found |= {id(part): part for part in value.parts()}
        return list(found.values())


COMPILING = threading.RLock()


def kernel(function: Any = None, /, **options: Any) -> Any:
    """Mark a function of arrays and numbers to be compiled; `options` are Numba's (`inline`, `fastmath`).

    It releases the GIL. Called from Python it takes arrays, integers, floats and booleans by position, and
    returns any of them, or a tuple. Its globals must be constants, kernels or modules.
    """
    if function is None:
        return lambda function: Kernel(function, options)
    return Kernel(function, options)


class Intrinsic:
    """What LLVM can say and Numba cannot (vectors, wide products), to be called by kernels.

    `function(builder, ...)` makes the instructions from LLVM's values, an array's being the address of its
    first item, and returns LLVM's value. `returns` and `takes` are names of Numba's types, or "array".
    """

    def __init__(self, function: Callable[..., Any], returns: str, takes: tuple[str, ...]) -> None:
        assert isinstance(function, FunctionType)
        self.function, self.returns, self.takes = function, returns, takes
        self.__name__, self.__module__ = function.__name__, function.__module__
        self._made: Any = None

    @property
    def dispatcher(self) -> Any:
        """Numba's own intrinsic."""
        if self._made is None:
            from loom.native.compile import known

            self._made = known(self)
        return self._made

    def __call__(self, *arguments: Any) -> Any:
        raise TypeError(f"{self.__name__} is for kernels only")


def intrinsic(returns: str, *takes: str) -> Callable[[Callable[..., Any]], Intrinsic]:
    """Mark a function as an `Intrinsic`."""
    return lambda function: Intrinsic(function, returns, takes)


def _type(value: Any) -> Any:
    """What Numba would call this argument's type: (element, dimensions, order, writable), a code, or a class."""
    if type(value) is np.ndarray and value.flags.aligned:
        flags = value.flags
        order = "C" if flags.c_contiguous else "F" if flags.f_contiguous else "A"
        return value.dtype.str, value.ndim, order, flags.writeable
    if isinstance(value, np.generic):
        return value.dtype.str
    if type(value) is int and value >= 1 << 63:
        return "<u8"
    return type(value)


def named(function: FunctionType) -> list[Any]:
    """The values of a function's globals and closure that its code names, in the order of the code."""
    found = []
    codes = [function.__code__]
    while codes:
        code = codes.pop(0)
        found += [function.__globals__[name] for name in code.co_names if name in function.__globals__]
        codes += [item for item in code.co_consts if isinstance(item, CodeType)]
    return [*found, *(cell.cell_contents for cell in function.__closure__ or ())]


# --- What is kept, and where


def folder() -> Path:
    """Where machine code is kept: `loom/kernels` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loom" / "kernels"


@cache
def _machine() -> str:
    """This processor and these versions, as one text."""
    known = [str(FORMAT), platform.machine(), sys.platform, sys.version]
    known += [np.__version__, *map(_version_of, ("numba", "llvmlite"))]
    about = re.compile(
        rb"^(vendor_id|cpu family|model|model name|stepping|flags|Features|CPU [a-z]+)\s*:.*$", re.M
    )
    try:
        with open("/proc/cpuinfo", "rb") as stream:
            first = stream.read(1 << 13).split(b"\n\n")[0]
        lines = [line[0].decode() for line in about.finditer(first)]
    except OSError:
        lines = []
    if not lines:
        import llvmlite.binding as llvm

        lines = [llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
    return "\n".join(known + lines)


def _version_of(package: str) -> str:
    """What a package's `_version.py` says, read without importing the package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).with_name("_version.py").read_text()


def digest(item: Kernel, key: tuple[Any, ...]) -> str:
    """Of everything that decides the machine code of `item` for the argument types `key`, 32 hex digits."""
    state = xxhash.xxh3_128(_machine().encode())
    state.update(repr([getattr(part, "__name__", part) for part in key]).encode())
    for part in item.parts():
        state.update(f"{part.__module__}.{part.__name__} {sorted(part.options.items())}".encode())
        _add_code(state, part.function.__code__)
        for value in named(part.function):
            if isinstance(value, np.ndarray):
                state.update(f"{value.dtype.str}{value.shape}".encode() + value.tobytes())
            elif isinstance(value, Intrinsic):
                state.update(f"{value.__name__} {value.returns} {value.takes}".encode())
                _add_intrinsic(state, value.function)
            elif isinstance(value, Kernel | FunctionType | ModuleType | type):
                state.update(f"{getattr(value, '__module__', '')}.{value.__name__}".encode())
            elif callable(value):
                state.update(getattr(value, "__name__", type(value).__name__).encode())
            else:
                state.update(f"{type(value).__name__} {value!r}".encode())
    return state.hexdigest()


def _add_intrinsic(state: Any, function: Callable[..., Any]) -> None:
    """The code of a builder of instructions and of the functions it names, with the constants of both."""
    assert isinstance(function, FunctionType)
    _add_code(state, function.__code__)
    for value in named(function):
        if isinstance(value, FunctionType) and value is not function:
            _add_intrinsic(state, value)
        elif isinstance(value, int | str | tuple):
            state.update(repr(value).encode())


def _add_code(state: Any, code: CodeType) -> None:
    consts = [item for item in code.co_consts if not isinstance(item, CodeType)]
    state.update(code.co_code + repr((code.co_names, code.co_varnames, consts)).encode())
    state.update(code.co_exceptiontable)
    for item in code.co_consts:
        if isinstance(item, CodeType):
            _add_code(state, item)


def keeping() -> bool:
    """Whether machine code is kept here; else Numba runs every kernel, with a cache of its own."""
    if os.environ.get("LOOM_KERNELS") == "numba" or os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        return False
    if sys.platform == "win32":
        return False
    try:
        place = folder()
        place.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that cannot be written
        return False
    return os.access(place, os.W_OK)


def _kept(item: Kernel, key: tuple[Any, ...]) -> Callable[..., Any] | None:
    """The call of the machine code of `item`, made and kept if there is none yet; None where Numba must run it."""
    if not keeping() or not all(map(_passable, key)):
        return None
    path = folder() / f"{item.__name__.strip('_')}-{digest(item, key)}.so"
    try:
        return _load(path, item, key)
    except (OSError, ValueError):
        pass  # not there yet, or damaged
    from loom.native.compile import machine_code

    try:
        with COMPILING:
            made = machine_code(item, key)
        if made is None:
            return None
        _store(path, *made)
        return _load(path, item, key)
    except (OSError, ValueError):
        return None


def _store(path: Path, code: bytes, linked: bool, returns: Any) -> None:
    """Keep machine code with what it returns behind it; the last to write wins, and all write the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = json.dumps([xxhash.xxh3_128_hexdigest(code), len(code), linked, returns]).encode()
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.{threading.get_ident()}")
    try:
        temporary.write_bytes(code + MAGIC + about)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path, item: Kernel, key: tuple[Any, ...]) -> Callable[..., Any]:
    """The call of kept machine code. Raises `ValueError` or `OSError` where it is not there, or damaged."""
    code, found, about = path.read_bytes().rpartition(MAGIC)
    if not found:
        raise ValueError(f"{path} is cut short")
    known, size, linked, returns = json.loads(about)
    if size != len(code) or xxhash.xxh3_128_hexdigest(code) != known:
        raise ValueError(f"{path} is damaged")
    if linked:
        return _caller(item, getattr(ctypes.CDLL(str(path)), SYMBOL), key, returns)
    return _caller(item, _placed(code), key, returns)


_ENGINES: list[Any] = []  # what holds the code that LLVM placed


def _placed(code: bytes) -> Any:
    """The function in an object file, placed into memory by LLVM where no linker made a library of it."""
    import llvmlite.binding as llvm

    with COMPILING:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(reloc="pic")
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        _ENGINES.append(engine)
        return ctypes.CFUNCTYPE(ctypes.c_int32)(engine.get_function_address(SYMBOL))


# --- Calling


def _passable(kind: Any) -> bool:
    if isinstance(kind, tuple):
        return kind[0][0] in "<|" and kind[0][1:] in _SCALARS
    return kind in (int, float, bool) or (isinstance(kind, str) and kind[1:] in _SCALARS)


_SCALARS: dict[str, Any] = {
    "b1": ctypes.c_bool, "i1": ctypes.c_int8, "i2": ctypes.c_int16, "i4": ctypes.c_int32, "i8": ctypes.c_int64,
    "u1": ctypes.c_uint8, "u2": ctypes.c_uint16, "u4": ctypes.c_uint32, "u8": ctypes.c_uint64,
    "f4": ctypes.c_float, "f8": ctypes.c_double,
}  # fmt: skip


def _caller(item: Kernel, native: Any, key: tuple[Any, ...], returns: Any) -> Callable[..., Any]:
    """A Python function that passes arguments of the types `key` to machine code and takes its result."""
    kinds: list[Any] = [ctypes.c_void_p, ctypes.c_void_p]
    for kind in key:
        if isinstance(kind, tuple):
            kinds += [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
            kinds += [ctypes.c_int64] * (2 * kind[1])
        else:
            kinds.append(_SCALARS[{int: "i8", float: "f8", bool: "b1"}.get(kind) or kind[1:]])
    native.argtypes, native.restype = kinds, ctypes.c_int32
    result, take = _returned(returns)
    arrays = [isinstance(kind, tuple) for kind in key]

    def call(*arguments: Any) -> Any:
        out, error = result(), ctypes.c_void_p()
        flat: list[Any] = [ctypes.addressof(out), ctypes.addressof(error)]
        for value, is_array in zip(arguments, arrays, strict=True):
            if is_array:
                size, width = value.size, value.itemsize
                flat += [None, None, size, width, value.__array_interface__["data"][0]]
                flat += value.shape
                flat += value.strides
            else:
                flat.append(value.item() if isinstance(value, np.generic) else value)
        if native(*flat):
            return item.dispatcher(*arguments)  # an exception: Numba raises it with its message
        return take(out)

    return call


def _returned(returns: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The C type of a result, and how to make a Python value of it.

    `returns` is None, a scalar's code, [code, dimensions] for an array or {"tuple": [...]}.
    """
    if returns is None:
        return ctypes.c_void_p, lambda out: None
    if isinstance(returns, str):
        kind = np.dtype(returns).type
        if returns in ("i8", "f8", "b1"):
            return _SCALARS[returns], lambda out: out.value  # as Numba gives them: plain numbers
        return _SCALARS[returns], lambda out: kind(out.value).item()
    if isinstance(returns, dict):
        parts = [_returned(part) for part in returns["tuple"]]
        fields = [(f"f{index}", part[0]) for index, part in enumerate(parts)]
        made = type("Result", (ctypes.Structure,), {"_fields_": fields})

        def take(out: Any) -> Any:
            values = []
            for (name, kind), (_, taken) in zip(fields, parts, strict=True):
                value = getattr(out, name)
                values.append(taken(value if isinstance(value, ctypes.Structure) else kind(value)))
            return tuple(values)

        return made, take
    code, dimensions = returns
    return _array_type(dimensions), lambda out: _array(out, np.dtype(code), dimensions)


@cache
def _array_type(dimensions: int) -> Any:
    fields = [
        ("memory", ctypes.c_void_p),
        ("parent", ctypes.c_void_p),
        ("items", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("data", ctypes.c_void_p),
        ("shape", ctypes.c_int64 * dimensions),
        ("strides", ctypes.c_int64 * dimensions),
    ]
    return type("Array", (ctypes.Structure,), {"_fields_": fields})


def _free() -> Any:
    if sys.platform == "win32":
        return None
    free = ctypes.CDLL(None).free
    free.argtypes, free.restype = [ctypes.c_void_p], None
    return free


_FREE = _free()


class _Memory:
    """An allocation of a kernel's, as numpy's array interface sees it; given back when no array needs it."""

    __slots__ = ("__array_interface__", "__weakref__", "address")

    def __init__(self, address: int, interface: dict[str, Any]) -> None:
        self.address, self.__array_interface__ = address, interface

    def __del__(self, count: Any = ctypes.c_size_t.from_address, free: Any = _FREE) -> None:
        held = count(self.address)  # arrays of one result may share it
        held.value -= 1
        if held.value == 0:
            free(self.address)


def _array(out: Any, dtype: Any, dimensions: int) -> Any:
    shape = tuple(out.shape)
    interface = {
        "shape": shape,
        "typestr": dtype.str,
        "data": (out.data or 0, False),
        "strides": tuple(out.strides),
        "version": 3,
    }
    if not out.memory:  # not the kernel's own: an argument's, or a part of one
        kept = type("View", (), {"__array_interface__": interface})()
        return np.array(kept) if out.items else np.empty(shape, dtype)
    memory = _Memory(out.memory, interface)
    return np.asarray(memory) if out.items else np.empty(shape, dtype)
