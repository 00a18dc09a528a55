"""y = x W^T for packed ternary weights: the one small op, native where it can be, and who computes it.

Activations are rounded to int8 per token, the sums are exact integers, and y = sum * (unit * scale) + bias in float32.
Every path gives the same bits.
"""

import ctypes
from collections.abc import Iterable
from types import ModuleType

import torch
from torch import Tensor

from . import native
from .packing import packed_shape, unpack
from .ternary import round_tokens


class Operand:
    """A packed layer as the kernel reads it. It holds its tensors, so the addresses stay good.

    codes: uint8 [P, L, 64] (`packing`); scales: float32 [N]; bias: float32 [N] or None. Raises ValueError for other
    sizes, beyond which the kernel would read, and for parts on several devices.
    """

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None, outputs: int, inputs: int):
        self.device = _check_parts(codes, scales, bias, outputs, inputs)
        scales, bias = (None if t is None else t.detach().float().contiguous() for t in (scales, bias))
        self.codes, self.scales, self.bias = codes.detach().contiguous(), scales, bias
        self.outputs, self.inputs = outputs, inputs
        bias_address = None if bias is None else bias.data_ptr()
        self.struct = native.LayerStruct(self.codes.data_ptr(), scales.data_ptr(), bias_address, outputs, inputs)
        self.address = ctypes.addressof(self.struct)
        self.linear = getattr(_binding(self.device), "linear", None)  # looked up once: a call takes half a microsecond
        self._int8: Tensor | None = None

    def int8(self) -> Tensor:
        """The signs as int8 [K, N], made once and kept: four times the packed bytes, where there is no kernel."""
        if self._int8 is None:
            signs = unpack(self.codes, self.outputs, self.inputs).to(torch.int8) - 1
            # A true copy: a layer of one input is contiguous either way, and _int_mm misreads the strides that it had.
            self._int8 = signs.t().clone(memory_format=torch.contiguous_format)
        return self._int8

    def extra_bytes(self) -> int:
        """Bytes kept beside the packed ones."""
        return 0 if self._int8 is None else self._int8.nbytes


class Operands:
    """Layers that read one x, which is then rounded once; all are multiplied in one call."""

    def __init__(self, operands: list[Operand]):
        if len({operand.inputs for operand in operands}) != 1:
            raise ValueError(f"layers of {[o.inputs for o in operands]} inputs cannot share one input")
        self.device = _one_device(operand.device for operand in operands)
        self.operands, self.inputs = operands, operands[0].inputs
        self.structs = (native.LayerStruct * len(operands))(*(operand.struct for operand in operands))
        self.address = ctypes.addressof(self.structs)
        self.linears = getattr(_binding(self.device), "linears", None)


def _check_parts(codes: Tensor, scales: Tensor, bias: Tensor | None, outputs: int, inputs: int) -> torch.device:
    shape = packed_shape(outputs, inputs)
    if codes.dtype != torch.uint8:
        raise ValueError(f"codes of {outputs} x {inputs} weights are uint8, not {codes.dtype}")
    for name, part, wanted in (("codes", codes, shape), ("scales", scales, (outputs,)), ("bias", bias, (outputs,))):
        if part is not None and tuple(part.shape) != wanted:
            raise ValueError(f"{name} of {outputs} x {inputs} weights are {list(wanted)}, not {list(part.shape)}")
    return _one_device(part.device for part in (codes, scales, bias) if part is not None)


def _one_device(devices: Iterable[torch.device]) -> torch.device:
    device, *others = sorted(set(devices), key=str)
    if others:
        named = ", ".join(map(str, (device, *others)))
        raise ValueError(f"what is multiplied together lies on several devices: {named}")
    return device


def _binding(device: torch.device) -> ModuleType | None:
    """ternary_binding.cpp, whose functions return None where x is not plain; None where it cannot be had or used."""
    kernel = native.kernel() if device.type == "cpu" else None
    return None if kernel is None else kernel.binding


def kernel_in_use() -> str:
    """What multiplies packed weights on this machine's processor, in words."""
    kernel = native.kernel()
    if kernel is None:
        return f"torch._int_mm on int8 weights, four times the packed memory ({native.why_not()})"
    called = "" if kernel.binding else f", called through ctypes ({kernel.why_no_binding})"
    threads = "as many threads as torch" if kernel.threads else "one thread"
    return f"{native.PATHS[kernel.paths[-1]]} kernel, {threads}{called}"


def multiply(operand: Operand, x: Tensor, path: str | None = None, threads: int | None = None) -> Tensor:
    """x [..., K] -> [..., N] of x's type.

    Args: path: a name of `native.PATHS`, "int8", or None for the best; threads: None for torch's number.
    Raises ValueError for another width, a path that this machine does not have, or no thread; TypeError for an x that
    is not floating point; RuntimeError for one on another device, or without memory, as torch.func and tracers make.
    """
    if path is None and threads is None and operand.linear is not None:
        y = operand.linear(operand.address, x)
        if y is not None:
            return y
    return multiply_all(Operands([operand]), x, path, threads)[0]


def multiply_all(operands: Operands, x: Tensor, path: str | None = None, threads: int | None = None) -> list[Tensor]:
    """x [..., K] -> [..., N_i] for each layer, the same as `multiply` gives for each alone."""
    if path is None and threads is None and operands.linears is not None:
        ys = operands.linears(operands.address, len(operands.operands), x)
        if ys is not None:
            return ys
    kernel = native.kernel() if x.is_cpu else None
    _check_asked(operands, x, threads)
    if path not in (None, "int8") and (kernel is None or path not in kernel.paths):
        raise ValueError(f"path = {path!r}: here there are {', '.join((*(kernel.paths if kernel else ()), 'int8'))}")
    if kernel is None or path == "int8":
        return [_multiply_int8(operand, x) for operand in operands.operands]
    return _multiply_by_ctypes(
        kernel, operands, x, len(kernel.paths) - 1 if path is None else kernel.paths.index(path), threads
    )


def _check_asked(operands: Operands, x: Tensor, threads: int | None) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}: a packed layer multiplies floating point, whose type its outputs have")
    if x.shape[-1:] != (operands.inputs,):
        raise ValueError(f"x is {list(x.shape)}: this layer has {operands.inputs} inputs")
    if x.device != operands.device:
        raise RuntimeError(f"x is on {x.device}, the layer on {operands.device}: move one of them with .to(device)")
    if threads is not None and not (isinstance(threads, int) and threads >= 1):
        raise ValueError(f"threads = {threads}: a whole number of at least 1, or None for torch's")


def _address(x: Tensor) -> int:
    """Where the numbers of x lie, or RuntimeError: some tensors only stand for others."""
    try:
        address = x.data_ptr()
    except RuntimeError:
        address = 0
    if not address and x.numel():
        raise RuntimeError(
            "x has no memory of its own, as under torch.func, torch.export or a tracer: give a plain one"
        )
    return address


def _multiply_by_ctypes(
    kernel: native.Kernel, operands: Operands, x: Tensor, path: int, threads: int | None
) -> list[Tensor]:
    rows = x.resolve_neg().to(torch.float32).contiguous()
    address = _address(rows)
    ys = [torch.empty(*x.shape[:-1], operand.outputs) for operand in operands.operands]
    if threads is None:
        work = rows.numel() * sum(operand.outputs for operand in operands.operands)
        threads = torch.get_num_threads() if work >= native.WORTH_THREADS else 1
    tokens, addresses = rows.numel() // operands.inputs, (ctypes.c_void_p * len(ys))(*[y.data_ptr() for y in ys])
    kernel.linears(operands.address, len(ys), address, tokens, addresses, threads, path)
    return [y.to(x.dtype) for y in ys]


def _multiply_int8(operand: Operand, x: Tensor) -> Tensor:
    values, units = round_tokens(x)
    weight = operand.int8()
    if x.is_cpu:
        sums = torch._int_mm(values.reshape(-1, operand.inputs), weight).view(*x.shape[:-1], operand.outputs)
    else:  # on another device: products and sums below 2^24 are exact in float32
        sums = values.float() @ weight.float()
    y = sums.float() * (units * operand.scales)
    return (y if operand.bias is None else y + operand.bias).to(x.dtype)
