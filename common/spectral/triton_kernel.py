"""The Triton program of `fused_kernel`; a module of its own, since importing Triton takes time."""

import triton
import triton.language as tl


# fmt: off
@triton.jit
def stft_pointwise_kernel(
    x_ptr, filters_ptr, scale_ptr, shift_ptr, weight_ptr, bias_ptr, out_ptr,
    positions, channels, features,
    out_t, out_h, out_w,
    in_t, in_h, in_w,
    x_stride_b, x_stride_c, x_stride_t, x_stride_h, x_stride_w,
    out_stride_b, out_stride_c, out_stride_t, out_stride_h, out_stride_w,
    stride_t, stride_h, stride_w,
    padding_t, padding_h, padding_w,
    slope,
    HAS_BIAS: tl.constexpr, KERNEL_T: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    ROWS: tl.constexpr, PACK: tl.constexpr, TAPS_PADDED: tl.constexpr, ROWS_PADDED: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr, BLOCK_FEATURES: tl.constexpr, PRECISION: tl.constexpr,
):
    """A program computes a block of positions and features; see `fused_kernel.launch` for the arguments."""
    TAPS: tl.constexpr = KERNEL_T * KERNEL_H * KERNEL_W
    # Positions of the output (m), and the samples (p) of the windows of PACK channels around them.
    m = tl.program_id(0) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    w = m % out_w
    h = m // out_w % out_h
    t = m // (out_w * out_h) % out_t
    b = m // (out_w * out_h * out_t)
    p = tl.arange(0, TAPS_PADDED)
    channel = p // TAPS
    tap = p % TAPS
    x_w = (w * stride_w - padding_w)[:, None] + (tap % KERNEL_W)[None, :]
    x_h = (h * stride_h - padding_h)[:, None] + (tap // KERNEL_W % KERNEL_H)[None, :]
    x_t = (t * stride_t - padding_t)[:, None] + (tap // (KERNEL_W * KERNEL_H))[None, :]
    inside = (m < positions)[:, None] & (channel < PACK)[None, :]
    inside = inside & (x_w >= 0) & (x_w < in_w) & (x_h >= 0) & (x_h < in_h) & (x_t >= 0) & (x_t < in_t)
    source = (b * x_stride_b)[:, None] + (channel * x_stride_c)[None, :]
    source += x_t * x_stride_t + x_h * x_stride_h + x_w * x_stride_w

    row = tl.arange(0, ROWS_PADDED)
    f = tl.program_id(1) * BLOCK_FEATURES + tl.arange(0, BLOCK_FEATURES)
    filters = tl.load(filters_ptr + p[:, None] * ROWS_PADDED + row[None, :])
    total = tl.full((BLOCK_POSITIONS, BLOCK_FEATURES), 0.0, tl.float32)
    for first in range(0, channels, PACK):
        known = inside & (first + channel < channels)[None, :]
        window = tl.load(x_ptr + first * x_stride_c + source, mask=known, other=0.0).to(tl.float32)
        response = tl.dot(window, filters, input_precision=PRECISION)
        k = first * ROWS + row
        used = (row < PACK * ROWS) & (k < channels * ROWS)
        scale = tl.load(scale_ptr + k, mask=used, other=0.0)
        shift = tl.load(shift_ptr + k, mask=used, other=0.0)
        response = response * scale[None, :] + shift[None, :]
        response = tl.where(response > 0, response, response * slope)
        weight = tl.load(
            weight_ptr + k[:, None] * features + f[None, :],
            mask=used[:, None] & (f < features)[None, :],
            other=0.0,
        )
        total += tl.dot(response.to(weight.dtype), weight, input_precision=PRECISION)
    if HAS_BIAS:
        total += tl.load(bias_ptr + f, mask=f < features, other=0.0)[None, :]
    target = (b * out_stride_b + t * out_stride_t + h * out_stride_h + w * out_stride_w)[:, None]
    target += (f * out_stride_c)[None, :]
    tl.store(out_ptr + target, total, mask=(m < positions)[:, None] & (f < features)[None, :])
