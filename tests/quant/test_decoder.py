"""The native decoder below any model: layers in panels, a head of any size on every path, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from forgelib.quant import PATHS, Blueprint, CannotDecode, Decoder, kernel_in_use, native
from forgelib.quant.blueprint import Attention, Block, FeedForward, Memory, Rotary
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


def test_a_part_of_another_size_is_refused_before_native_code_reads_it():
    whole = only_a_head(8, 20, half=True)
    with pytest.raises(ValueError, match=r"head is \[20, 7\]: here it must be \[20, 8\]"):
        replace(whole, head=nn.Linear(7, 20))
    with pytest.raises(ValueError, match=r"norm is \[9\]"):
        replace(whole, norm=torch.ones(9))
    with pytest.raises(ValueError, match=r"rotary.frequencies is \[1\]"):
        replace(whole, head_width=4)
    with pytest.raises(ValueError, match="cannot share 2"):
        replace(whole, heads=3, kv_heads=2)
    attention = Attention(*(nn.Linear(8, 2) for _ in range(3)), nn.Linear(2, 8))
    feed = FeedForward(nn.Linear(8, 5), nn.Linear(8, 5), nn.Linear(5, 8))
    block = Block(torch.ones(8), attention, torch.ones(8), feed)
    replace(whole, blocks=[block])
    for part, name, wrong in ((attention, "value", nn.Linear(8, 3)), (feed, "down", nn.Linear(6, 8))):
        field = "attention" if part is attention else "feed"
        with pytest.raises(ValueError, match=rf"blocks\[0\].{field}.{name} is"):
            replace(whole, blocks=[replace(block, **{field: replace(part, **{name: wrong})})])
    memory = Memory(
        *(nn.Linear(8, 8) for _ in range(3)),
        gates=nn.Linear(8, 6),
        conv=torch.ones(24, 1, 4),
        initial=torch.zeros(2, 4, 4),
        horizon=9,
        y_norm=torch.ones(8),
        m_norm=torch.ones(8),
        mix=nn.Linear(16, 8),
    )
    square = replace(block, attention=Attention(*(nn.Linear(8, 8) for _ in range(4))), memory=memory)
    wide = replace(whole, heads=4, kv_heads=4, blocks=[square])
    for name, wrong in (("gates", nn.Linear(8, 5)), ("conv", torch.ones(23, 1, 4)), ("initial", torch.zeros(2, 4, 3))):
        with pytest.raises(ValueError, match=rf"memory.{name} is"):
            replace(wide, blocks=[replace(square, memory=replace(memory, **{name: wrong}))])
    with pytest.raises(ValueError, match=r"attention.query is \[2, 8\]: here it must be \[8, 8\]"):
        replace(whole, blocks=[replace(block, memory=memory)])


@compiled
def test_it_counts_what_it_keeps_beside_the_model():
    decoder = Decoder(only_a_head(8, 70, half=True))
    assert decoder.extra_bytes() == 128 * 8 * 2
