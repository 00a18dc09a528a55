"""Ternary codes in few bits: 2 a weight in memory, in the kernel's order, and 1.6 on disk.

A code is sign + 1, one of {0, 1, 2}; 1 is the weight zero, and what pads. In memory 64 outputs make a panel, and a line
of a panel holds 4 inputs of all 64 in 64 bytes, four codes to a byte (drawn in ternary_kernel.cpp). On disk five codes
make one byte in base 3, 81 e + 27 d + 9 c + 3 b + a <= 242, row after row without gaps.

Shape legend: N outputs, K inputs, P = ceil(N / 64) panels, L = ceil(K / 4) lines.
"""

import torch
from torch import Tensor

PANEL, PER_LINE, LINE_BYTES = 64, 4, 64
#: Rows of one panel that share a byte lie 16 apart.
APART = 16
DIGITS = 5
#: Beyond this an int32 sum in the kernel could overflow.
MAX_INPUTS = 2**17


def packed_shape(outputs: int, inputs: int) -> tuple[int, int, int]:
    """[P, L, 64]: the shape of a packed layer. Raises ValueError for a size that cannot be packed."""
    if outputs < 1 or not 1 <= inputs <= MAX_INPUTS:
        raise ValueError(
            f"a layer of {outputs} outputs and {inputs} inputs: at least 1 each, at most {MAX_INPUTS} inputs"
        )
    return -(-outputs // PANEL), -(-inputs // PER_LINE), LINE_BYTES


def pack(codes: Tensor) -> Tensor:
    """Codes uint8 [N, K] -> uint8 [P, L, 64]. Raises ValueError for a code outside {0, 1, 2} or another type."""
    _refuse_other_codes(codes)
    outputs, inputs = codes.shape
    panels, lines, _ = packed_shape(outputs, inputs)
    padded = codes.new_ones(panels * PANEL, lines * PER_LINE)
    padded[:outputs, :inputs] = codes
    fields = padded.view(panels, 4, APART, lines, PER_LINE).permute(0, 3, 2, 4, 1)  # [P, L, row, input, field]
    a, b, c, d = fields.unbind(-1)
    return (a | b << 2 | c << 4 | d << 6).reshape(panels, lines, LINE_BYTES).contiguous()


def unpack(packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """The codes uint8 [N, K] again. Raises ValueError for another shape or type, a code 3, padding that is not 1."""
    shape = packed_shape(outputs, inputs)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != shape:
        raise ValueError(
            f"{outputs} x {inputs} ternary weights are uint8 {list(shape)}, not "
            f"{str(packed.dtype).removeprefix('torch.')} {list(packed.shape)}"
        )
    bytes_ = packed.view(*shape[:2], APART, PER_LINE)
    fields = torch.stack([bytes_ >> shift & 3 for shift in (0, 2, 4, 6)])  # [field, P, L, row, input]
    codes = fields.permute(1, 0, 3, 2, 4).reshape(shape[0] * PANEL, shape[1] * PER_LINE)
    if bool((codes == 3).any()):
        raise ValueError("a packed weight holds the code 3: only 0, 1 and 2 are weights; the memory or file is damaged")
    if not _is_padding(codes[outputs:]) or not _is_padding(codes[:, inputs:]):
        raise ValueError("a packed weight is not padded with zero weights: it was made for another shape")
    return codes[:outputs, :inputs].contiguous()


def to_base3(codes: Tensor) -> Tensor:
    """Codes uint8 [N, K] -> uint8 [ceil(N K / 5)]. Raises ValueError for a code outside {0, 1, 2}."""
    _refuse_other_codes(codes)
    flat = codes.reshape(-1)
    flat = torch.cat([flat, flat.new_ones(-len(flat) % DIGITS)]).view(-1, DIGITS)
    result = flat[:, DIGITS - 1].clone()
    for digit in range(DIGITS - 2, -1, -1):
        result.mul_(3).add_(flat[:, digit])
    return result


def from_base3(stored: Tensor, outputs: int, inputs: int) -> Tensor:
    """The codes uint8 [N, K] again. Raises ValueError for a wrong length or type, a byte above 242, other padding."""
    packed_shape(outputs, inputs)
    count, length = outputs * inputs, -(-outputs * inputs // DIGITS)
    if stored.dtype != torch.uint8 or tuple(stored.shape) != (length,):
        raise ValueError(
            f"{outputs} x {inputs} ternary weights are {length} bytes on disk, not "
            f"{str(stored.dtype).removeprefix('torch.')} {list(stored.shape)}: cut short, or made for another shape"
        )
    if bool((stored >= 3**DIGITS).any()):
        raise ValueError(f"a stored byte is above {3**DIGITS - 1}: five codes of 0, 1 and 2 never give it; damaged")
    flat, rest = stored.new_empty(length, DIGITS), stored
    for digit in range(DIGITS):
        higher = rest // 3
        flat[:, digit] = rest - 3 * higher
        rest = higher
    flat = flat.view(-1)
    if not _is_padding(flat[count:]):
        raise ValueError("the stored codes do not end with zero weights: damaged, or made for another shape")
    return flat[:count].view(outputs, inputs).clone()


def _is_padding(codes: Tensor) -> bool:
    return bool((codes == 1).all())


def _refuse_other_codes(codes: Tensor) -> None:
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise ValueError(f"codes are uint8 [outputs, inputs], not {codes.dtype} {list(codes.shape)}")
    packed_shape(*codes.shape)
    if bool((codes > 2).any()):
        raise ValueError(f"a code is {int(codes.max())}: only 0, 1 and 2 (weight + 1) can be packed")
