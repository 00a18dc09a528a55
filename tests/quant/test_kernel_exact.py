"""The kernel's integers are those of float64, on every path, for every shape; and all paths give the same bits."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from forgelib.quant import PATHS, Operand, Operands, kernel_in_use, multiply, multiply_all, native, pack, round_tokens

#: Those of the measured table, odd tails, and one of everything.
SHAPES = [
    *((512, 512), (2048, 512), (512, 2048), (576, 576), (1536, 576), (576, 1536)),
    *((70, 52), (1, 4), (1, 1), (33, 1000), (65, 7), (64, 63), (63, 65), (129, 130)),
]
TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 17, 32, 64)


@pytest.fixture(params=[*PATHS, "int8"])
def path(request) -> str:
    """Each path that this processor has, forced; "int8" is torch's, where there is no compiler."""
    kernel = native.kernel()
    if request.param != "int8" and (kernel is None or request.param not in kernel.paths):
        pytest.skip(f"not on this machine: {kernel_in_use()}")
    return request.param


def signs(outputs: int, inputs: int) -> torch.Tensor:
    return torch.randint(-1, 2, (outputs, inputs), dtype=torch.int8)


def operand(weight: torch.Tensor, scales: torch.Tensor | None = None, bias: torch.Tensor | None = None) -> Operand:
    scales = torch.ones(len(weight)) if scales is None else scales
    return Operand(pack((weight + 1).to(torch.uint8)), scales, bias, *weight.shape)


def whole_numbers(tokens: int, inputs: int) -> torch.Tensor:
    """Activations that are rounded to themselves: each token holds 127, so its unit is 1 and y is the integer sum."""
    x = torch.randint(-127, 128, (tokens, inputs)).float()
    x[:, torch.randint(inputs, ())] = 127.0
    return x


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integers_are_those_of_float64(shape, path, threads):
    weight = signs(*shape)
    weight[shape[0] // 2] = 0
    packed = operand(weight)
    for tokens in TOKENS if threads == 1 else (1, 8, 17, 64):  # two threads wait for each other on a busy machine
        x = whole_numbers(tokens, shape[1])
        y = multiply(packed, x, path, threads)
        assert torch.equal(y.double(), x.double() @ weight.double().t()), f"{tokens} tokens"


@pytest.mark.parametrize("inputs", [4096, 4097, 11008, 2**17])
def test_nothing_overflows(path, inputs):
    """All weights 1 and all activations 127: 4,096 inputs make 520,192, which a sum in int16 wraps to -8192."""
    weight = torch.ones(65, inputs, dtype=torch.int8)
    weight[1], weight[2, ::2] = -1, -1
    x = torch.full((7, inputs), 127.0)
    x[1], x[2, ::2] = -127.0, -127.0
    y = multiply(operand(weight), x, path)
    assert torch.equal(y.double(), x.double() @ weight.double().t())
    if inputs == 4096:
        assert float(y[0, 0]) == 520_192


@pytest.mark.parametrize("seed", range(12))
def test_any_shape(path, seed):
    """Shapes drawn at random, real activations, scales for each row, bias: equal bits to the formula in torch."""
    g = torch.Generator().manual_seed(seed)
    outputs, inputs, tokens = (int(math.exp(torch.rand((), generator=g) * top)) for top in (6.5, 7.5, 6))
    weight, scales, bias = signs(outputs, inputs), torch.rand(outputs), torch.randn(outputs) if seed % 2 else None
    x = torch.randn(tokens, inputs, generator=g) * 10 ** torch.empty(tokens, 1).uniform_(-6, 6, generator=g)
    x[tokens // 2] = 0
    y = multiply(operand(weight, scales, bias), x, path)
    values, units = round_tokens(x)
    expected = (values.double() @ weight.double().t()).float() * (units * scales)
    assert torch.equal(y, expected if bias is None else expected + bias)


def test_every_small_shape(path):
    """Each size up to a panel and a bit, one input and one output among them, x as a transposed view besides."""
    for inputs in range(1, 71):
        for outputs in range(1, 71):
            weight = signs(outputs, inputs)
            packed = operand(weight)
            for tokens in (1, 2, 5):
                x = torch.randn(inputs, tokens).t()
                values, units = round_tokens(x)
                expected = (values.double() @ weight.double().t()).float() * units
                for given in (x, x.contiguous()):
                    assert torch.equal(multiply(packed, given, path), expected), f"{tokens} x {inputs} x {outputs}"


def test_activations_are_rounded_by_one_formula(path):
    """x * (127 / absmax), and not x * (127 * (1 / absmax)): tokens chosen so that the two round apart."""
    largest = torch.rand(200_000) * 9 + 1
    scale = torch.full_like(largest, 127.0) / largest
    x = (torch.randint(0, 126, largest.shape) + 0.5) / scale
    apart = (x * scale).round() != (x * (127.0 * (1.0 / largest))).round()
    tokens = torch.stack([largest, x], dim=1)[apart]
    assert len(tokens) > 100
    y = multiply(operand(torch.tensor([[0, 1]], dtype=torch.int8)), tokens, path)
    values, units = round_tokens(tokens)
    assert torch.equal(values[:, 1].float(), (tokens * scale[apart][:, None]).round()[:, 1])
    assert torch.equal(y, values[:, 1:].float() * units)


def test_more_tokens_than_are_rounded_at_once(path):
    weight, x = signs(65, 33), whole_numbers(531, 33)
    for threads in (1, 2):
        y = multiply(operand(weight), x, path, threads)
        assert torch.equal(y.double(), x.double() @ weight.double().t())


def test_a_token_that_is_no_number_gives_none_and_spoils_no_other(path):
    weight, x = signs(70, 40), whole_numbers(9, 40)
    clean = multiply(operand(weight), x, path)
    x[2, 3], x[5, 39], x[7, 0] = float("nan"), float("inf"), -float("inf")
    y = multiply(operand(weight), x, path)
    bad = torch.zeros(9, dtype=torch.bool)
    bad[[2, 5, 7]] = True
    assert bool(y[bad].isnan().all()) and torch.equal(y[~bad], clean[~bad])


def test_layers_with_one_input_are_multiplied_as_each_alone(path):
    weights = [signs(n, 100) for n in (64, 1, 130)]
    operands = [operand(w, torch.rand(len(w)), torch.randn(len(w))) for w in weights]
    x = torch.randn(2, 5, 100)
    for threads in (1, 2):
        for alone, together in zip(operands, multiply_all(Operands(operands), x, path, threads), strict=True):
            assert torch.equal(multiply(alone, x, path), together)
    with pytest.raises(ValueError, match="cannot share"):
        Operands([operand(signs(4, 8)), operand(signs(4, 9))])


def test_the_quick_way_gives_what_the_forced_one_does(path):
    """Whole batches, halves of a tensor, other types, no tokens at all."""
    packed = operand(signs(70, 24), torch.rand(70))
    x = torch.randn(3, 4, 48)
    for given in (x[..., :24].contiguous(), x[..., 24:], x[0, 0, :24], x[..., :24].transpose(0, 1), x[:0, :, :24]):
        assert torch.equal(multiply(packed, given), multiply(packed, given, path, 1))
        half = given.to(torch.bfloat16)
        y = multiply(packed, half)
        assert y.dtype == torch.bfloat16 and torch.equal(y, multiply(packed, half.float()).to(torch.bfloat16))


@pytest.mark.skipif(operand(signs(1, 1)).linear is None, reason="the kernel is called through ctypes, or there is none")
def test_plain_tensors_take_the_quick_way():
    packed, x = operand(signs(70, 24)), torch.randn(3, 24)
    with torch.inference_mode():
        inferred = x.clone()
    for given in (x, inferred, x[1], x[1:], x[:0], x.view(3, 1, 24)):
        assert torch.equal(packed.linear(packed.address, given), multiply(packed, given, threads=1))
        with torch.autocast("cpu", torch.bfloat16):
            assert packed.linear(packed.address, given) is not None
    assert packed.linear(packed.address, torch._neg_view(x)) is None


def test_a_view_of_the_negative_is_the_negative(path):
    """torch keeps such a minus as a mark beside the memory of x; so does x.conj().imag."""
    packed, x = operand(signs(70, 24), bias=torch.randn(70)), torch.randn(3, 24)
    for given in (torch._neg_view(x), torch._neg_view(x.double())):
        expected = multiply(packed, (-x).to(given.dtype), path)
        for chosen in (path, None):
            assert torch.equal(multiply(packed, given, chosen), expected)
            assert torch.equal(multiply_all(Operands([packed]), given, chosen)[0], expected)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.skipif(native.kernel() is None, reason="torch's own operations can be mapped")
@pytest.mark.parametrize("mapped", [torch.func.vmap, torch.func.functionalize])
def test_a_tensor_without_memory_is_refused_and_never_read(mapped):
    packed, x = operand(signs(70, 24)), torch.randn(3, 24)
    for call in (lambda t: multiply(packed, t), lambda t: multiply_all(Operands([packed]), t)[0]):
        with pytest.raises(RuntimeError, match="no memory"):
            mapped(call)(x)
        with pytest.raises(RuntimeError, match="no memory"):
            call(FakeTensorMode().from_tensor(x))


@pytest.mark.parametrize("path", [None, "int8"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_only_floating_point_is_multiplied(dtype, path):
    """Outputs of x's type would be cut off, or lose the imaginary part."""
    packed = operand(signs(8, 24))
    with pytest.raises(TypeError, match=str(dtype)):
        multiply(packed, torch.ones(2, 24, dtype=dtype), path)


@pytest.mark.parametrize("threads", [0, -1, 1.5])
def test_a_number_of_threads_is_whole_and_at_least_one(path, threads):
    with pytest.raises(ValueError, match=f"threads = {threads}"):
        multiply(operand(signs(70, 24)), torch.randn(9, 24), path, threads)


def test_a_layer_on_another_device_is_refused_and_never_read():
    part, x = operand(signs(70, 24)), torch.randn(3, 24)
    moved = Operand(part.codes.to("meta"), part.scales.to("meta"), None, 70, 24)
    for call in (lambda: multiply(moved, x), lambda: multiply_all(Operands([moved, moved]), x)):
        with pytest.raises(RuntimeError, match="x is on cpu, the layer on meta"):
            call()
    with pytest.raises(RuntimeError, match="x is on meta, the layer on cpu"):
        multiply(part, x.to("meta"))
    with pytest.raises(ValueError, match="cpu, meta"):
        Operand(part.codes, part.scales.to("meta"), None, 70, 24)
    with pytest.raises(ValueError, match="cpu, meta"):
        Operands([part, moved])


def test_parts_of_another_size_are_refused():
    """The kernel reads as far as the sizes say."""
    part = operand(signs(70, 24))
    for codes, scales, bias in [
        (part.codes[:1], part.scales, None),
        (part.codes.float(), part.scales, None),
        (part.codes, torch.ones(1), None),
        (part.codes, part.scales, torch.ones(69)),
    ]:
        with pytest.raises(ValueError, match="70"):
            Operand(codes, scales, bias, 70, 24)


def test_the_memory_of_an_operand_is_its_own():
    codes = operand(signs(70, 24)).codes
    packed = Operand(codes, torch.ones(70), None, 70, 24)
    codes.data = torch.zeros(1, dtype=torch.uint8)
    assert packed.codes.data_ptr() == packed.struct.codes


def test_what_does_not_fit_is_refused():
    packed = operand(signs(8, 24))
    with pytest.raises(ValueError, match="24 inputs"):
        multiply(packed, torch.randn(2, 25))
    with pytest.raises(ValueError, match="path = 'sse9'"):
        multiply(packed, torch.randn(2, 24), path="sse9")
