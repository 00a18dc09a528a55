"""The native decoder below any model: layers in panels, a head of any size on every path, and what it refuses."""

import pytest
import torch
from torch import nn

from forgelib.quant import PATHS, Blueprint, CannotDecode, Decoder, kernel_in_use, native
from forgelib.quant.blueprint import Rotary
from forgelib.quant.decoder import in_panels

compiled = pytest.mark.skipif(native.kernel() is None, reason=f"no kernel here: {native.why_not()}")


@pytest.fixture(params=PATHS)
def path(request) -> str:
    """Each path that this processor has."""
    if native.kernel() is None or request.param not in native.kernel().paths:
        pytest.skip(f"not on this machine: {kernel_in_use()}")
    return request.param


def only_a_head(width: int, vocabulary: int, half: bool, bias: bool = True) -> Blueprint:
    """A model without blocks: logits = head(norm(embedding))."""
    torch.manual_seed(0)
    head = nn.Linear(width, vocabulary, bias=bias)
    if half:
        head.weight.data = head.weight.data.half().float()
    return Blueprint(
        embedding=torch.randn(vocabulary, width),
        blocks=[],
        norm=torch.rand(width) + 0.5,
        head=head,
        heads=1,
        kv_heads=1,
        head_width=2,
        rotary=Rotary(torch.ones(1), 1.0, pairs=True),
        epsilon=1e-6,
    )


def reference(blueprint: Blueprint, token: int) -> torch.Tensor:
    """Logits [V] in float64."""
    x = blueprint.embedding[token].double()
    x = x / (x.pow(2).mean() + blueprint.epsilon).sqrt() * blueprint.norm.double()
    return blueprint.head.double()(x).detach()


@pytest.mark.parametrize("half", [True, False], ids=["float16", "float32"])
@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (17, 65), (600, 1000), (63, 129)], ids=str)
def test_a_head_is_that_of_float64(shape, half, path):
    blueprint = only_a_head(*shape, half)
    decoder = Decoder(blueprint, path)
    decoder.start(3)
    token = shape[1] // 2
    for n_threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        try:
            logits = decoder.step(token).clone()
        finally:
            torch.set_num_threads(before)
        expected = reference(only_a_head(*shape, half), token)
        torch.testing.assert_close(logits.double(), expected, rtol=2e-6, atol=2e-6)


def test_every_float16_is_widened_exactly(path):
    """All finite values, the tiny ones without a leading 1 among them: one input, so each logit is one weight."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    values = bits.view(torch.float16)
    values = values[values.isfinite()].float()
    blueprint = only_a_head(1, len(values), half=True, bias=False)
    blueprint.head.weight.data = values[:, None].clone()
    blueprint.embedding.fill_(1.0), blueprint.norm.fill_(1.0)
    decoder = Decoder(blueprint, path)
    decoder.start(1)
    logits = decoder.step(0)
    factor = 1.0 / torch.tensor(1.0 + 1e-6).sqrt()
    assert in_panels(blueprint.head.weight.detach()).dtype == torch.float16
    torch.testing.assert_close(logits, values * factor, rtol=1e-6, atol=0)


@compiled
def test_weights_go_into_panels_and_are_padded_with_zeros():
    weight = torch.randn(70, 5)
    panels = in_panels(weight)
    assert panels.shape == (2, 5, 64) and panels.dtype == torch.float32
    assert torch.equal(panels.transpose(1, 2).reshape(128, 5)[:70], weight) and not panels[1, :, 6:].any()
    assert in_panels(weight.half().float()).dtype == torch.float16
    assert in_panels(torch.full((1, 1), 1e6)).dtype == torch.float32, "more than a float16 can hold"


@compiled
def test_what_does_not_fit_is_refused():
    decoder = Decoder(only_a_head(8, 20, half=True))
    decoder.start(2)
    for token in (-1, 20):
        with pytest.raises(ValueError, match="0 to 19"):
            decoder.step(token)
    decoder.step(0), decoder.step(19)
    with pytest.raises(ValueError, match="room for 2 tokens"):
        decoder.step(0)
    with pytest.raises(ValueError, match="room for 2 tokens, 2 are read"):
        decoder.take_over(2, [])
    with pytest.raises(ValueError, match="path = 'sse9'"):
        Decoder(only_a_head(8, 20, half=True), "sse9")
    with pytest.raises(CannotDecode, match="NaN"):
        in_panels(torch.tensor([[float("nan")]]))
    with pytest.raises(CannotDecode, match=r"float64 on cpu"):
        in_panels(torch.zeros(1, 1).double())
    wrong = only_a_head(8, 20, half=True)
    wrong.embedding.data = wrong.embedding.to(torch.bfloat16)
    with pytest.raises(CannotDecode, match=r"bfloat16 on cpu"):
        Decoder(wrong)


@compiled
def test_it_counts_what_it_keeps_beside_the_model():
    decoder = Decoder(only_a_head(8, 70, half=True))
    assert decoder.extra_bytes() == 128 * 8 * 2
