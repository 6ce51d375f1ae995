"""Numba's part in a kernel: the function it compiles, and the machine code it leaves behind."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np

from loom.native import SYMBOL, Intrinsic, Kernel, keeping


def _start_light() -> None:
    """Have Numba look for no extensions and no BLAS in this process, unless it already has.

    It starts by importing every package that announces an extension of it (awkward, which comes with
    gigatoken) and SciPy for its matrix products: half a second for what no kernel uses.
    """
    from numba.core import entrypoints

    if hasattr(entrypoints, "_already_initialized"):
        entrypoints._already_initialized = True
    if "scipy.linalg" not in sys.modules and "numba.np.arraymath" not in sys.modules:
        sys.modules["scipy.linalg"] = None  # type: ignore[assignment]
        try:
            import numba.np.arraymath  # noqa: F401
        finally:
            del sys.modules["scipy.linalg"]


_start_light()

import llvmlite.binding as llvm  # noqa: E402
from numba import njit  # noqa: E402
from numba.core import types  # noqa: E402
from numba.extending import intrinsic  # noqa: E402
from numba.np.numpy_support import as_dtype, from_dtype  # noqa: E402

INLINING = 3000  # LLVM's measure of how large a function may be to be put in place of its call; it has 225
HEADER = 64  # bytes in front of an allocation's data: Numba's record of it
# What machine code may call: the C library and the mathematics in it.
ALLOWED = frozenset(
    {"malloc", "realloc", "free", "memcpy", "memmove", "memset", "memcmp", "bcmp"}
    | {"exp", "expf", "exp2", "log", "logf", "log2", "log10", "log1p", "pow", "powf", "sqrt", "sqrtf"}
    | {"floor", "floorf", "ceil", "ceilf", "trunc", "rint", "rintf", "round", "fmod", "fabs"}
    | {"sin", "cos", "tan", "tanh"}
)


def dispatcher(item: Kernel) -> Any:
    """Numba's compiled function of a kernel; the kernels that it calls are Numba's in it too."""
    function = item.function
    names = {
        name: value.dispatcher if isinstance(value, Kernel | Intrinsic) and value is not item else value
        for name, value in function.__globals__.items()
        if name in _names(function.__code__) or name.startswith("__")
    }
    copy = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__module__, copy.__qualname__ = function.__module__, function.__qualname__
    try:  # what is kept as machine code is compiled anew, since Numba's own cache forgets LLVM's text
        made = njit(nogil=True, cache=not keeping(), **item.options)(copy)
    except RuntimeError:  # no folder for Numba's cache either
        made = njit(nogil=True, **item.options)(copy)
    if item.__name__ in names:
        names[item.__name__] = made  # it calls itself
    return made


def known(item: Intrinsic) -> Any:
    """An intrinsic as Numba has them."""

    def define(typing: Any, *arguments: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            flat = [
                context.make_array(kind)(context, builder, value).data if name == "array" else value
                for name, kind, value in zip(item.takes, signature.args, values, strict=True)
            ]
            out = item.function(builder, *flat)
            return context.get_dummy_value() if out is None else out

        taken = [
            kind if name == "array" else getattr(types, name)
            for name, kind in zip(item.takes, arguments, strict=True)
        ]
        return getattr(types, item.returns)(*taken), generate

    places = ["typing", *(f"value_{index}" for index in range(len(item.takes)))]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    define.__signature__ = inspect.Signature([inspect.Parameter(p, kind) for p in places])  # type: ignore[attr-defined]
    define.__name__ = item.__name__
    return intrinsic(define)


def _names(code: CodeType) -> set[str]:
    found = set(code.co_names)
    for item in code.co_consts:
        if isinstance(item, CodeType):
            found |= _names(item)
    return found


def machine_code(item: Kernel, key: tuple[Any, ...]) -> tuple[bytes, bool, Any] | None:
    """(machine code with `item` as `SYMBOL`, whether it is a library, what it returns).

    The code is a shared library where there is a linker, else an object file; None where it needs Numba.
    """
    signature: list[Any] = []
    for kind in key:
        if isinstance(kind, tuple):
            signature.append(
                types.Array(from_dtype(np.dtype(kind[0])), kind[1], kind[2], readonly=not kind[3])
            )
        elif isinstance(kind, str):
            signature.append(from_dtype(np.dtype(kind)))
        else:
            signature.append({int: types.int64, float: types.float64, bool: types.boolean}[kind])
    made = item.dispatcher
    made.compile(tuple(signature))
    overload = made.overloads[tuple(signature)]
    returns = _described(overload.signature.return_type)
    if returns is _UNKNOWN:
        return None
    try:
        module = _standing_alone(overload.library.get_llvm_str(), overload.fndesc.llvm_func_name)
    except RuntimeError:  # LLVM's: text that it cannot read, symbols that are not there
        return None
    if module is None:
        return None
    shared = _linked(_target(module.triple, "small").emit_object(module))
    if shared is None:
        return _target(module.triple, "jitdefault").emit_object(module), False, returns
    return shared, True, returns


def _target(triple: str, model: str) -> Any:
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel=model,
    )


def _standing_alone(text: str, entry: str) -> Any:
    """A module in LLVM's language with its function `entry` as `SYMBOL`, and an allocator.

    None where it calls more than the C library. What it calls of its own is put in place of the call wherever
    that is not huge: an array is seven arguments, and a call in an inner loop costs more than what it does.
    """
    module = llvm.parse_assembly(text)
    module.link_in(llvm.parse_assembly(_memory_ir(module.triple)))
    for function in module.functions:
        if not function.is_declaration:
            function.linkage = "external" if function.name == entry else "internal"
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.inlining_threshold = INLINING
    builder = llvm.create_pass_builder(_target(module.triple, "small"), tuning)
    builder.getModulePassManager().run(module, builder)
    module.get_function(entry).name = SYMBOL
    needed = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    return module if needed <= ALLOWED else None


def _memory_ir(triple: str) -> str:
    """Numba's allocator in LLVM's language, from `malloc`: its record of six words, the data of arrays behind it.

    The words are: references, destructor, its argument, data, size, whether the data is an allocation of its own
    (a list's, that may grow).
    """
    fields = "\n".join(
        f"  %p{n} = getelementptr i64, ptr %raw, i64 {n}\n  store i64 {value}, ptr %p{n}"
        for n, value in enumerate(("1", "0", "%info", "%at", "%size", "%own"))
    )
    return f"""
target triple = "{triple}"
declare ptr @malloc(i64)
declare ptr @realloc(ptr, i64)
declare void @free(ptr)
define internal void @record(ptr %raw, i64 %info, i64 %at, i64 %size, i64 %own) {{
{fields}
  ret void
}}
define ptr @NRT_MemInfo_alloc_aligned(i64 %size, i32 %align) {{
  %wide = zext i32 %align to i64
  %more = add i64 %wide, {HEADER}
  %all = add i64 %size, %more
  %raw = call ptr @malloc(i64 %all)
  %none = icmp eq ptr %raw, null
  br i1 %none, label %failed, label %made
made:
  %start = ptrtoint ptr %raw to i64
  %past = add i64 %start, %more
  %over = urem i64 %past, %wide
  %at = sub i64 %past, %over
  call void @record(ptr %raw, i64 0, i64 %at, i64 %size, i64 0)
  ret ptr %raw
failed:
  ret ptr null
}}
define ptr @NRT_MemInfo_alloc_safe_aligned(i64 %size, i32 %align) {{
  %raw = call ptr @NRT_MemInfo_alloc_aligned(i64 %size, i32 %align)
  ret ptr %raw
}}
define ptr @NRT_MemInfo_new_varsize_dtor(i64 %size, ptr %destroy) {{
  %raw = call ptr @malloc(i64 {HEADER})
  %data = call ptr @malloc(i64 %size)
  %no_raw = icmp eq ptr %raw, null
  %no_data = icmp eq ptr %data, null
  %none = or i1 %no_raw, %no_data
  br i1 %none, label %failed, label %made
made:
  %info = ptrtoint ptr %destroy to i64
  %at = ptrtoint ptr %data to i64
  call void @record(ptr %raw, i64 %info, i64 %at, i64 %size, i64 1)
  ret ptr %raw
failed:
  call void @free(ptr %raw)
  call void @free(ptr %data)
  ret ptr null
}}
define ptr @NRT_MemInfo_varsize_realloc(ptr %raw, i64 %size) {{
  %place = getelementptr i64, ptr %raw, i64 3
  %data = load ptr, ptr %place
  %more = call ptr @realloc(ptr %data, i64 %size)
  %none = icmp eq ptr %more, null
  br i1 %none, label %failed, label %made
made:
  store ptr %more, ptr %place
  %sized = getelementptr i64, ptr %raw, i64 4
  store i64 %size, ptr %sized
  ret ptr %more
failed:
  ret ptr null
}}
define void @NRT_MemInfo_call_dtor(ptr %raw) {{
  %place = getelementptr i64, ptr %raw, i64 5
  %own = load i64, ptr %place
  %plain = icmp eq i64 %own, 0
  br i1 %plain, label %last, label %list
list:
  %informed = getelementptr i64, ptr %raw, i64 2
  %destroy = load ptr, ptr %informed
  %held = getelementptr i64, ptr %raw, i64 3
  %data = load ptr, ptr %held
  %none = icmp eq ptr %destroy, null
  br i1 %none, label %emptied, label %filled
filled:
  call void %destroy(ptr %data)
  br label %emptied
emptied:
  call void @free(ptr %data)
  br label %last
last:
  call void @free(ptr %raw)
  ret void
}}
"""


_UNKNOWN = object()


def _described(kind: Any) -> Any:
    """A result's type as `_returned` reads it, or `_UNKNOWN`."""
    if kind == types.none:
        return None
    if isinstance(kind, types.Boolean | types.Integer | types.Float) and not isinstance(kind, types.Literal):
        return as_dtype(kind).str[1:]
    if isinstance(kind, types.Array) and isinstance(kind.dtype, types.Number | types.Boolean):
        return [as_dtype(kind.dtype).str, kind.ndim]
    if isinstance(kind, types.BaseTuple):
        parts = [_described(part) for part in list(kind)]  # type: ignore[call-overload]
        return _UNKNOWN if any(part is _UNKNOWN for part in parts) or not parts else {"tuple": parts}
    return _UNKNOWN


def _linked(code: bytes) -> bytes | None:
    """An object file as a shared library, None where this machine has no linker."""
    linker = next(filter(None, map(shutil.which, ("ld", "ld.lld", "cc"))), None)
    if linker is None:
        return None
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "kernel.o").write_bytes(code)
        command = [linker, "-shared", "-o", f"{place}/kernel.so", f"{place}/kernel.o"]
        done = subprocess.run(command, capture_output=True, timeout=60)
        return None if done.returncode else (Path(place) / "kernel.so").read_bytes()
