# mypy: disable-error-code="untyped-decorator,no-untyped-call,import-untyped"
"""Dot products of weight rows with activation rows, in vectors of 16 lanes, written as LLVM instructions.

Every sum is taken in the same order however many rows are computed together, so that a result never
depends on its neighbours: a BLAS chooses another order for another shape. Weights are float32, or
bfloat16 as uint16, whose 16 bits are the upper half of the float32 they stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

LANES = 16
intrinsic: Any = extending.intrinsic
_FLOAT, _WORD, _HALF = ir.FloatType(), ir.IntType(32), ir.IntType(16)
_VECTOR, _WORDS, _HALVES = (ir.VectorType(kind, LANES) for kind in (_FLOAT, _WORD, _HALF))


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    name = "llvm.fma.v16f32" if a.type == _VECTOR else "llvm.fma.f32"
    kind = ir.FunctionType(a.type, [a.type] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])


def _at(builder: Any, address: Any, index: Any, size: int, kind: Any) -> Any:
    """A pointer to `kind` at element `index` of `size` bytes each, counted from `address`."""
    place = builder.add(address, builder.mul(index, index.type(size)))
    return builder.inttoptr(place, kind.as_pointer())


def _vector(builder: Any, address: Any, index: Any, narrow: bool) -> Any:
    if not narrow:
        return builder.load(_at(builder, address, index, 4, _VECTOR), align=4)
    halves = builder.load(_at(builder, address, index, 2, _HALVES), align=2)
    shift = ir.Constant(_WORDS, [16] * LANES)
    return builder.bitcast(builder.shl(builder.zext(halves, _WORDS), shift), _VECTOR)


def _scalar(builder: Any, address: Any, index: Any, narrow: bool) -> Any:
    if not narrow:
        return builder.load(_at(builder, address, index, 4, _FLOAT), align=4)
    half = builder.load(_at(builder, address, index, 2, _HALF), align=2)
    return builder.bitcast(builder.shl(builder.zext(half, _WORD), _WORD(16)), _FLOAT)


def _prefetch(builder: Any, address: Any, index: Any, size: int) -> None:
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _WORD, _WORD, _WORD])
    f = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(f, [_at(builder, address, index, size, byte.pointee), _WORD(0), _WORD(3), _WORD(1)])


def _sum(builder: Any, vector: Any) -> Any:
    """The lanes of a vector, added in halves."""
    width = LANES
    while width > 1:
        width //= 2
        low, high = (
            builder.shuffle_vector(
                vector, ir.Constant(vector.type, ir.Undefined), ir.Constant(ir.VectorType(_WORD, width), part)
            )
            for part in (list(range(width)), list(range(width, 2 * width)))
        )
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, _WORD(0))


def dots(rows: int, columns: int, narrow: bool) -> Callable[..., None]:
    """An intrinsic f(w, w_step, x, x_step, width, out, out_step): out[c, r] = w[r] · x[c].

    w, x and out are addresses, of `rows` weight rows, `columns` activation rows (float32) and float32
    results; steps count elements from one row to the next.
    """

    @intrinsic
    def f(context: Any, w: Any, w_step: Any, x: Any, x_step: Any, width: Any, out: Any, out_step: Any) -> Any:
        signature = types.void(*[types.int64] * 7)

        def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
            w, w_step, x, x_step, width, out, out_step = arguments
            tile = _Tile(builder, rows, columns, narrow, w, w_step, x, x_step)
            wide = tile.sums(_VECTOR)
            for pair in tile.pairs:
                builder.store(ir.Constant(_VECTOR, [0.0] * LANES), wide[pair])
            whole = builder.and_(width, width.type(-LANES))
            tile.loop(width.type(0), whole, LANES, _vector, wide)
            tile.finish(wide, whole, width, out, out_step)

        return signature, code

    made: Callable[..., None] = f
    return made


def part_dots(rows: int, columns: int, narrow: bool, ahead: bool) -> Callable[..., None]:
    """An intrinsic f(w, w_step, x, x_step, start, stop, sums) that goes on with the sums of `dots`.

    It adds the products of elements start to stop, multiples of 16, to `sums`, the address of float32
    [rows * columns, 16]. With `ahead` the same span of the weight rows that follow is called for.
    """

    @intrinsic
    def f(context: Any, w: Any, w_step: Any, x: Any, x_step: Any, start: Any, stop: Any, sums: Any) -> Any:
        signature = types.void(*[types.int64] * 7)

        def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
            w, w_step, x, x_step, start, stop, sums = arguments
            tile = _Tile(builder, rows, columns, narrow, w, w_step, x, x_step)
            wide = tile.sums(_VECTOR)
            for number, pair in enumerate(tile.pairs):
                place = sums.type(number * LANES)
                builder.store(builder.load(_at(builder, sums, place, 4, _VECTOR), align=4), wide[pair])
            tile.loop(start, stop, LANES, _vector, wide, ahead)
            for number, pair in enumerate(tile.pairs):
                place = sums.type(number * LANES)
                builder.store(builder.load(wide[pair]), _at(builder, sums, place, 4, _VECTOR), align=4)

        return signature, code

    made: Callable[..., None] = f
    return made


def end_dots(rows: int, columns: int, narrow: bool) -> Callable[..., None]:
    """An intrinsic f(w, w_step, x, x_step, width, sums, out, out_step) that ends what `part_dots` did."""

    @intrinsic
    def f(
        context: Any, w: Any, w_step: Any, x: Any, x_step: Any, width: Any, sums: Any, out: Any, out_step: Any
    ) -> Any:
        signature = types.void(*[types.int64] * 8)

        def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
            w, w_step, x, x_step, width, sums, out, out_step = arguments
            tile = _Tile(builder, rows, columns, narrow, w, w_step, x, x_step)
            wide = {
                pair: _at(builder, sums, sums.type(number * LANES), 4, _VECTOR)
                for number, pair in enumerate(tile.pairs)
            }
            whole = builder.and_(width, width.type(-LANES))
            tile.finish(wide, whole, width, out, out_step)

        return signature, code

    made: Callable[..., None] = f
    return made


class _Tile:
    """Instructions for some weight rows times some activation rows."""

    def __init__(
        self, builder: Any, rows: int, columns: int, narrow: bool, w: Any, w_step: Any, x: Any, x_step: Any
    ) -> None:
        size = 2 if narrow else 4
        self.builder, self.narrow = builder, narrow
        self.w_rows = [builder.add(w, builder.mul(w_step, w_step.type(r * size))) for r in range(rows)]
        self.x_rows = [builder.add(x, builder.mul(x_step, x_step.type(c * 4))) for c in range(columns)]
        self.pairs = [(r, c) for r in range(rows) for c in range(columns)]
        self.next_rows = builder.mul(w_step, w_step.type(rows * size))

    def sums(self, kind: Any) -> dict[tuple[int, int], Any]:
        return {pair: cgutils.alloca_once(self.builder, kind) for pair in self.pairs}

    def loop(self, start: Any, stop: Any, step: int, load: Any, sums: Any, ahead: bool = False) -> None:
        """Add the products of elements start to stop to the sums, `step` at a time."""
        builder = self.builder
        with cgutils.for_range_slice(builder, start, stop, start.type(step), start.type) as (at, _count):
            if ahead:
                for row in self.w_rows:
                    _prefetch(builder, builder.add(row, self.next_rows), at, 2 if self.narrow else 4)
            x_values = [load(builder, row, at, False) for row in self.x_rows]
            for r, row in enumerate(self.w_rows):
                w_value = load(builder, row, at, self.narrow)
                for c, x_value in enumerate(x_values):
                    total = builder.load(sums[r, c])
                    builder.store(_fma(builder, w_value, x_value, total), sums[r, c])

    def finish(self, wide: Any, whole: Any, width: Any, out: Any, out_step: Any) -> None:
        """The lanes' sum, then the elements behind the last whole vector, one by one."""
        builder = self.builder
        rest = self.sums(_FLOAT)
        for pair in self.pairs:
            builder.store(_sum(builder, builder.load(wide[pair], align=4)), rest[pair])
        self.loop(whole, width, 1, _scalar, rest)
        for r, c in self.pairs:
            place = builder.add(builder.mul(out_step, out_step.type(c)), out_step.type(r))
            builder.store(builder.load(rest[r, c]), _at(builder, out, place, 4, _FLOAT))


@intrinsic
def as_float(_: Any, word: Any) -> Any:
    """The float32 whose bits an int32 holds."""
    return types.float32(types.int32), lambda context, builder, s, a: builder.bitcast(a[0], _FLOAT)


@intrinsic
def as_word(_: Any, value: Any) -> Any:
    """The bits of a float32 as int32."""
    return types.int32(types.float32), lambda context, builder, s, a: builder.bitcast(a[0], _WORD)


def _pointer_to(kind: Any) -> Any:
    @intrinsic
    def f(_: Any, address: Any) -> Any:
        target = types.CPointer(kind)

        def code(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(target))

        return target(types.int64), code

    return f


floats_at, halves_at = _pointer_to(types.float32), _pointer_to(types.uint16)


@intrinsic
def fetch_add(_: Any, array: Any, index: Any) -> Any:
    """Add one to array[index] as one indivisible step; what was there before."""
    return types.int64(array, types.intp), _atomic(
        lambda builder, place: builder.atomic_rmw("add", place, ir.IntType(64)(1), "seq_cst")
    )


@intrinsic
def fetch(_: Any, array: Any, index: Any) -> Any:
    """array[index] as other threads left it."""
    return types.int64(array, types.intp), _atomic(
        lambda builder, place: builder.load_atomic(place, "acquire", 8)
    )


def _atomic(work: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        array = context.make_array(kind)(context, builder, arguments[0])
        return work(builder, cgutils.get_item_pointer(context, builder, kind, array, [arguments[1]]))

    return code


give_way = types.ExternalFunction("sched_yield", types.int32())
