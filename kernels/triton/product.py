# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803
"""Products of rows with the rows of a weight, which is in 16 bits or more, or packed in integers of 8 or 4 bits.

`kernels.triton.weights` says how integers are packed. They are widened in registers, exactly, and the scales multiply
sums in fp32. Products of packed weights are computed transposed: Hopper's wgmma instructions take only their left
operand from registers. Its tiles then have 64 or more columns, and as few rows as there are.
"""

import triton
import triton.language as tl

RUN = 128  # inputs whose integers are packed into the same words


@triton.jit
def product(
    x_ptr,
    x_at,  # [ROWS], where each row begins
    present,  # [ROWS]
    weight_ptr,  # [experts, OUTPUTS, INPUTS], or packed
    scales_ptr,  # [experts, groups, OUTPUTS] fp32
    expert,
    output,  # [COLS], rows of the expert's weight
    inside,  # [COLS]
    begin,  # inputs [begin, end) are multiplied; `begin` is a multiple of INNER
    end,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,  # RUN if packed
    BITS: tl.constexpr,
    DOT: tl.constexpr,
    PTX: tl.constexpr,
):
    """Sum over inputs in their order; [ROWS, COLS] fp32."""
    if BITS == 16:
        weight_at = (expert * OUTPUTS + output) * INPUTS
        acc = tl.zeros([ROWS, COLS], tl.float32)
        for start in range(begin, end, INNER):
            x = load_tile(x_ptr, x_at, present, start, INPUTS, INNER, INNER).to(DOT)
            weight = load_tile(weight_ptr, weight_at, inside, start, INPUTS, INNER, INNER).to(DOT)
            acc = tl.dot(x, tl.trans(weight), acc, input_precision="ieee")
    else:
        parts: tl.constexpr = 16 // BITS
        part: tl.constexpr = INNER // parts
        runs: tl.constexpr = (INPUTS + INNER - 1) // INNER
        words_at = (expert * OUTPUTS + output) * (runs * part)
        scales_at = scales_ptr + expert * ((runs * parts if BITS == 4 else 1) * OUTPUTS) + output
        turned = tl.zeros([COLS, ROWS], tl.float32)
        if BITS == 4:
            scales = load_scales(scales_at, inside, begin // part, parts * (runs - 1), OUTPUTS)
        for start in range(begin, end, INNER):
            words = load_tile(weight_ptr, words_at, inside, start // parts, runs * part, part, part)
            if BITS == 4:  # one step ahead: Triton itself prefetches nothing but operands of products
                following = load_scales(scales_at, inside, start // part + parts, parts * (runs - 1), OUTPUTS)
            for index in tl.static_range(parts):
                x = load_tile(x_ptr, x_at, present, start + index * part, INPUTS, part, INNER).to(DOT)
                weight = unpack(words, index, BITS, DOT, PTX)
                if BITS == 4:
                    part_sum = tl.dot(weight, tl.trans(x), input_precision="ieee")
                    turned = tl.fma(part_sum, scales[index][:, None], turned)
                else:
                    turned = tl.dot(weight, tl.trans(x), turned, input_precision="ieee")
            if BITS == 4:
                scales = following
        if BITS == 8:
            turned *= tl.load(scales_at, mask=inside, other=0.0)[:, None]
        acc = tl.trans(turned)
    return acc


@triton.jit
def load_tile(ptr, at, present, start, SIZE: tl.constexpr, INNER: tl.constexpr, STEP: tl.constexpr):
    """Load columns [start, start + INNER) of the rows of SIZE at `at` [N]; [N, INNER], zero where there are none.

    Rows are read in steps of STEP columns, of which this tile has some.
    """
    column = start + tl.arange(0, INNER)
    mask = present[:, None]
    if SIZE % STEP != 0:
        mask = mask & (column < SIZE)[None, :]
    return tl.load(ptr + at[:, None] + column[None, :], mask=mask, other=0)


@triton.jit
def load_scales(at, present, group, LAST: tl.constexpr, OUTPUTS: tl.constexpr):
    """Load the scales of a run's four groups, from `group` or LAST on, whichever is less; each [N]."""
    first = at + tl.minimum(group, LAST) * OUTPUTS
    return (
        tl.load(first, mask=present, other=0.0),
        tl.load(first + OUTPUTS, mask=present, other=0.0),
        tl.load(first + 2 * OUTPUTS, mask=present, other=0.0),
        tl.load(first + 3 * OUTPUTS, mask=present, other=0.0),
    )


@triton.jit
def unpack(words, index: tl.constexpr, BITS: tl.constexpr, DOT: tl.constexpr, PTX: tl.constexpr):
    """Integer `index` of each word, in DOT."""
    if PTX:
        asm: tl.constexpr = widen(index, BITS, DOT)
        bits = tl.inline_asm_elementwise(asm, "=r,r", [words], dtype=tl.int16, is_pure=True, pack=2)
        values = bits.to(DOT, bitcast=True)
    else:
        values = ((words >> (index * BITS)) & (2**BITS - 1)).to(DOT) - 2 ** (BITS - 1)
    return values


@triton.constexpr_function
def widen(index: int, bits: int, dtype: tl.dtype) -> str:
    """PTX that turns integer `index` of two words into two numbers; integers are stored plus half of their range.

    Integers are put below the exponent of 128 (bf16) or 1024 (fp16), where bits count in ones, and the excess is
    subtracted. Only seven bits fit below that of 128, so the eighth bit of an int8 selects what is subtracted.
    """

    def both(number: int) -> str:
        return f"0x{number << 16 | number:08X}"

    suffix, one, base = ("bf16x2", 0x3F80, 0x4300) if dtype == tl.bfloat16 else ("f16x2", 0x3C00, 0x6400)
    negative = 0x8000
    if bits == 8 and dtype == tl.bfloat16:
        body = f"""
            lop3.b32 b, a, {both(0x7F)}, {both(base)}, 0xEA;  // a & 0x7F | base
            lop3.b32 c, a, {both(0x80)}, {both(base)}, 0xAE;  // ~a & 0x80 | base, which is 128 or 256
            mov.b32 a, {both(negative | one)};
            fma.rn.{suffix} $0, c, a, b;"""
    else:
        body = f"""
            lop3.b32 b, a, {both(2**bits - 1)}, {both(base)}, 0xEA;
            mov.b32 a, {both(one)};
            mov.b32 c, {both(negative | base | 2 ** (bits - 1))};
            fma.rn.{suffix} $0, b, a, c;"""
    return f"{{ .reg .b32 a, b, c; shr.b32 a, $1, {index * bits}; {body} }}"
