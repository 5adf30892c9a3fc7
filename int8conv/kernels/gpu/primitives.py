# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
"""Device functions shared by several kernels.

int8 is converted to float by bit manipulation: an unsigned byte in the lowest bits of a mantissa is ``2^n + byte``, so one XOR
(which also turns the signed byte into an unsigned one, off by 128) and one subtraction are exact and need no conversion
instruction, which would run at a quarter of the rate. ``rint`` adds and subtracts 1.5 * 2^23, which rounds half to even.

The interpreter treats bfloat16 as a bare bit pattern: it truncates when narrowing and multiplies bit patterns in ``dot``.
There, ``narrow`` and ``dot16`` reproduce what the hardware does; ``product_codes`` does so where it has no fused multiply-add.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .launch import INTERPRETED as _INTERPRETED

INTERPRETED = tl.constexpr(_INTERPRETED)
"""The same flag, for use in kernels."""


@triton.jit
def after_previous(PDL: tl.constexpr):  # noqa: N803
    """Wait until the launch before has ended and its results are visible; then allow the next one to begin.

    Before this call a kernel may only read what no launch of the step writes; every program has to make it. In this order whatever
    runs early is behind the end of the launch before last, so that each launch's end implies that of all earlier ones.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def rint(x):
    """float32 to the nearest integer, half to even; exact for |x| <= 2^22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def product_codes(x, y):
    """``x * y`` to the nearest int8, half to even, for float32 operands with a product of at most 127; rounded once."""
    if INTERPRETED:
        product = x.to(tl.float64) * y.to(tl.float64)  # exact, as the product inside an FMA is
        return ((product + 6755399441055744.0) - 6755399441055744.0).to(tl.int8)
    else:  # the code is the lowest byte of the mantissa
        return tl.fma(x, y, 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def widen_codes(codes):
    """int8 to float32, exactly."""
    bits = codes.to(tl.uint8, bitcast=True).to(tl.uint32) ^ 0x4B000080
    return bits.to(tl.float32, bitcast=True) - 8388736.0


@triton.jit
def halve_codes(codes, dtype: tl.constexpr):
    """int8 to float16 or bfloat16, exactly."""
    if dtype == tl.float16:
        bits = codes.to(tl.uint8, bitcast=True).to(tl.uint16) ^ 0x6480
        return bits.to(tl.float16, bitcast=True) - 1152.0
    else:
        return widen_codes(codes).to(tl.bfloat16)


@triton.jit
def four_codes(words, dtype: tl.constexpr):
    """int32 of four codes each ``[..., n]`` to float16 or bfloat16 ``[..., n, 2, 2]``, exactly, in the order of the codes.

    Five instructions for float16: a byte becomes the end of the mantissa of 1024. bfloat16 has room for seven bits, so that it takes
    eight: ``(128 + lower bits) - (128, or 256 for a negative code)``.
    """
    if INTERPRETED:
        a, b, c, d = words << 24, words << 16, words << 8, words
        return tl.join(
            tl.join((a >> 24).to(tl.float32).to(dtype), (c >> 24).to(tl.float32).to(dtype)),
            tl.join((b >> 24).to(tl.float32).to(dtype), (d >> 24).to(tl.float32).to(dtype)),
        )
    elif dtype == tl.float16:
        a, b, c, d = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 t, c, lo, hi;
            xor.b32 t, $4, 0x80808080;
            mov.b32 c, 0x64646464;
            prmt.b32 lo, t, c, 0x4140;
            prmt.b32 hi, t, c, 0x4342;
            mov.b32 c, 0x64806480;
            sub.f16x2 lo, lo, c;
            sub.f16x2 hi, hi, c;
            mov.b32 {$0, $1}, lo;
            mov.b32 {$2, $3}, hi;
            }
            """, "=h,=h,=h,=h,r", [words], dtype=(tl.float16, tl.float16, tl.float16, tl.float16), is_pure=True, pack=1,
        )  # fmt: skip
        return tl.join(tl.join(a, c), tl.join(b, d))
    else:
        a, b, c, d = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 c, lo, hi, m, n, one;
            mov.b32 c, 0x43434343;
            mov.b32 one, 0x3f803f80;
            prmt.b32 lo, $4, c, 0x4140;
            prmt.b32 hi, $4, c, 0x4342;
            lop3.b32 m, lo, 0x00800080, 0xC300C300, 0xEA;
            lop3.b32 n, hi, 0x00800080, 0xC300C300, 0xEA;
            and.b32 lo, lo, 0xFF7FFF7F;
            and.b32 hi, hi, 0xFF7FFF7F;
            fma.rn.bf16x2 lo, lo, one, m;
            fma.rn.bf16x2 hi, hi, one, n;
            mov.b32 {$0, $1}, lo;
            mov.b32 {$2, $3}, hi;
            }
            """, "=h,=h,=h,=h,r", [words], dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=1,
        )  # fmt: skip
        return tl.join(tl.join(a, c), tl.join(b, d))


@triton.jit
def two_values(words, dtype: tl.constexpr):
    """int32 of two 16-bit values each ``[..., n]`` to ``[..., n, 2]``."""
    if INTERPRETED:
        a, b = words.to(tl.int16), (words >> 16).to(tl.int16)
        return tl.join(a.to(dtype, bitcast=True), b.to(dtype, bitcast=True))
    elif dtype == tl.float16:
        a, b = tl.inline_asm_elementwise("mov.b32 {$0, $1}, $2;", "=h,=h,r", [words], dtype=(tl.float16, tl.float16), is_pure=True, pack=1)  # fmt: skip
        return tl.join(a, b)
    else:
        a, b = tl.inline_asm_elementwise("mov.b32 {$0, $1}, $2;", "=h,=h,r", [words], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=1)  # fmt: skip
        return tl.join(a, b)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """float32 to the dtype of the result, rounded half to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, rounded, bits).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def dot16(a, b, acc):
    """``acc + a @ b`` with 16-bit operands and float32 sums."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        return tl.dot(a, b, acc)


@triton.jit
def tanh(x):
    """Hyperbolic tangent in float32."""
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def activate(x, kind: tl.constexpr):
    """An activation function in float32; ``kind`` as in ``reference.ACTIVATIONS``."""
    if kind == "silu":
        return x * tl.sigmoid(x)
    elif kind == "relu":
        return tl.where(x == x, tl.maximum(x, 0.0), x)
    elif kind == "relu2":
        return tl.where(x == x, tl.maximum(x, 0.0) * tl.maximum(x, 0.0), x)
    elif kind == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif kind == "gelu_tanh":
        return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    else:
        return x
