"""The long-term memory against Titans' equations, and the laws that make it usable: causal, exact in chunks, finite."""

import pytest
import torch
import torch.nn.functional as F

from forgelib.models.gate import MemoryGate
from forgelib.models.memory import (
    MemoryState,
    NeuralMemory,
    Writes,
    bounded_gates,
    read_in_chunks,
    read_sequentially,
    running_products,
)


def draw(length: int, sharpness: float = 2.0, width: int = 8, seed: int = 0) -> tuple[MemoryState, Writes]:
    """A state and what a text of `length` tokens writes; a larger sharpness drives the gates to their ends."""
    torch.manual_seed(seed)
    q, k = F.normalize(torch.randn(2, 2, 3, length, width), dim=-1)
    v = F.silu(torch.randn(2, 3, length, width))
    gates = bounded_gates(sharpness * torch.randn(2, 9, length), 2048)
    return MemoryState(*0.3 * torch.randn(2, 2, 3, width, width)), Writes(q, k, v, *gates)


def memory_of(seed: int = 0, chunk: int = 4, ltm_tokens: int = 64) -> NeuralMemory:
    torch.manual_seed(seed)
    memory = NeuralMemory(d_model=12, n_heads=2, chunk=chunk, ltm_tokens=ltm_tokens, conv_kernel=4)
    torch.nn.init.normal_(memory.initial_memory, std=0.3)
    return memory


def titans_by_autograd(state: MemoryState, writes: Writes) -> tuple[torch.Tensor, MemoryState]:
    """Titans, equations 9, 10 and 13, in float64; the surprise is the gradient that autograd finds."""
    memory, momentum = (x.double() for x in state)
    w = Writes(*(x.double() for x in writes))
    outputs = []
    for t in range(w.q.shape[2]):
        eta, theta, decay = (gate[:, :, t, None, None] for gate in (w.eta, w.theta, w.decay))
        variable = memory.detach().requires_grad_()
        recalled = torch.einsum("bhvk,bhk->bhv", variable, w.k[:, :, t])
        (gradient,) = torch.autograd.grad(0.5 * (recalled - w.v[:, :, t]).square().sum(), variable)
        momentum = eta * momentum - theta * gradient
        memory = decay * memory + momentum
        outputs.append(torch.einsum("bhvk,bhk->bhv", memory, w.q[:, :, t]))
    return torch.stack(outputs, 2), MemoryState(memory, momentum)


def assert_same(one, other, atol):
    for a, b in zip((one[0], *one[1]), (other[0], *other[1]), strict=True):
        torch.testing.assert_close(a.double(), b.double(), atol=atol, rtol=0)


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 12.0])
def test_the_memory_follows_the_gradient_that_autograd_finds(sharpness):
    state, writes = draw(40, sharpness)
    expected = titans_by_autograd(state, writes)
    assert_same(read_sequentially(state, writes), expected, 1e-5)
    assert_same(read_in_chunks(state, writes, 16), expected, 1e-5)


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 12.0])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 16, 64, 200, 300])
@pytest.mark.parametrize("length", [1, 5, 200])
def test_chunked_equals_sequential(length, chunk, sharpness):
    state, writes = draw(length, sharpness)
    assert_same(read_in_chunks(state, writes, chunk), read_sequentially(state, writes), 1e-5)


def test_chunked_gradients_equal_sequential_ones():
    state, writes = draw(50)
    leaves = [x.double().requires_grad_() for x in (*state, *writes)]

    def gradients(read):
        output, after = read(MemoryState(*leaves[:2]), Writes(*leaves[2:]))
        return torch.autograd.grad(output.sin().sum() + after.memory.cos().sum() + after.momentum.sin().sum(), leaves)

    pairs = zip(gradients(lambda s, w: read_in_chunks(s, w, 16)), gradients(read_sequentially), strict=True)
    for chunked, sequential in pairs:
        torch.testing.assert_close(chunked, sequential, atol=1e-9, rtol=1e-7)


def test_products_of_nearly_closed_gates_keep_their_precision():
    gates = torch.sigmoid(12 * torch.randn(4, 100, generator=torch.Generator().manual_seed(0)))
    exact = torch.ones(4, 100, 100, dtype=torch.float64)
    for t in range(1, 100):
        exact[:, t, :t] = exact[:, t - 1, :t] * gates[:, t, None].double()
    torch.testing.assert_close(running_products(gates)[1].double(), exact.tril(), atol=3e-7, rtol=0)


@pytest.mark.parametrize("cuts", [[1, 2, 3, 11], [16], [5, 5, 5, 2], [17]])
def test_state_carried_across_calls_equals_one_call(cuts):
    memory, x = memory_of(), torch.randn(2, 17, 12)
    whole, final, tail = memory(x)
    state, before, parts = None, None, []
    for part in x.split([*cuts, 17 - sum(cuts)], dim=1):
        if part.shape[1]:
            read, state, before = memory(part, state, before)
            parts.append(read)
    assert_same((torch.cat(parts, 1), state), (whole, final), 1e-6)
    torch.testing.assert_close(before, tail)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_text_shorter_than_a_chunk_changes_the_memory(length):
    memory = memory_of(chunk=64)
    before = memory.initial_state(1).memory
    _, state, _ = memory(torch.randn(1, length, 12))
    assert (state.memory - before).abs().max() > 1e-3 and state.momentum.abs().max() > 1e-3


def test_later_tokens_change_nothing_before_them_but_everything_after():
    memory, x = memory_of(), torch.randn(1, 23, 12)
    changed = x.clone()
    changed[:, 9] += 1
    moved = (memory(x)[0] - memory(changed)[0]).abs().amax(-1)[0]
    assert moved[:9].max() < 1e-6 and moved[9:].min() > 1e-6


def test_padding_before_a_text_neither_writes_nor_forgets():
    memory, x = memory_of(), torch.randn(1, 9, 12)
    padded, valid = torch.cat([torch.randn(1, 6, 12), x], 1), torch.arange(15)[None] >= 6
    alone, together = memory(x), memory(padded, valid=valid)
    assert_same((together[0][:, 6:], together[1]), alone[:2], 1e-6)


def test_every_parameter_of_the_memory_gets_a_gradient():
    memory = memory_of()
    memory(torch.randn(2, 11, 12))[0].square().sum().backward()
    for name, parameter in memory.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    by_gate = memory.gates.weight.grad.view(3, 2, 12).abs().amax((1, 2))
    assert (by_gate > 0).all(), "eta, theta and alpha all learn"


def largest(state: MemoryState) -> torch.Tensor:
    """max(|M|, |M + S|), Frobenius, of each head."""
    return torch.maximum(state.memory.norm(dim=(-1, -2)), (state.memory + state.momentum).norm(dim=(-1, -2)))


KEYS = {
    "the same key": lambda n, d: F.normalize(torch.randn(1, d), dim=-1).expand(n, d),
    "random keys": lambda n, d: F.normalize(torch.randn(n, d), dim=-1),
    "keys in turn": lambda n, d: torch.eye(d).repeat(-(-n // d), 1)[:n],
    "a key, then long silence about it": lambda n, d: torch.eye(d)[(torch.arange(n) // 37) % d],
}
GATES = {  # logits of eta, theta, alpha
    "momentum as far as it goes": lambda n: torch.tensor([20.0, 20.0, -20.0])[:, None].expand(3, n),
    "balanced": lambda n: torch.tensor([0.0, 20.0, -20.0])[:, None].expand(3, n),
    "write all, forget nothing": lambda n: torch.tensor([-20.0, 20.0, -20.0])[:, None].expand(3, n),
    "random and sharp": lambda n: torch.randn(3, n) * 8,
    "by turns": lambda n: torch.where(torch.arange(n) % 50 < 7, 20.0, -20.0) * torch.tensor([1.0, 1.0, 1.0])[:, None],
}


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("keys", KEYS)
def test_no_text_of_10_000_tokens_makes_the_memory_diverge(keys, gates):
    torch.manual_seed(0)
    n, d, horizon = 10_000, 16, 2048
    k, v = KEYS[keys](n, d)[None, None], torch.randn(1, 1, n, d)
    eta, theta, decay = bounded_gates(GATES[gates](n)[None], horizon)
    state = MemoryState(torch.zeros(1, 1, d, d), torch.zeros(1, 1, d, d))
    output, after = read_in_chunks(state, Writes(k, k, v, eta, theta, decay), 64)
    assert output.isfinite().all()
    assert largest(after).item() <= 2 * horizon * v.norm(dim=-1).max()


def test_without_new_values_the_memory_only_shrinks():
    """The inequality behind the bound, for any gates and keys: V_t <= decay_t V_{t-1} where v_t = 0."""
    state, writes = draw(400, sharpness=6.0)
    writes = writes._replace(v=torch.zeros_like(writes.v))
    for t in range(400):
        before = largest(state)
        _, state = read_sequentially(state, Writes(*(x[:, :, t : t + 1] for x in writes)))
        assert (largest(state) <= writes.decay[:, :, t] * before * (1 + 1e-5) + 1e-7).all()


def test_gates_free_in_0_to_1_would_diverge():
    """The control: random keys, eta and theta 0.9 without the bound."""
    torch.manual_seed(0)
    k, gate = F.normalize(torch.randn(1, 1, 10_000, 16), dim=-1), torch.ones(1, 1, 10_000)
    writes = Writes(k, k, torch.randn_like(k), 0.9 * gate, 0.9 * gate, (1 - 1 / 2048) * gate)
    state = MemoryState(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))
    assert not read_in_chunks(state, writes, 64)[0].isfinite().all()


def test_alpha_has_the_horizon_as_its_floor():
    _, _, decay = bounded_gates(torch.full((1, 3, 1), -50.0), 8192)
    assert decay.item() == pytest.approx(1 - 1 / 8192)


def test_the_memory_stays_float32_under_autocast():
    memory, x = memory_of(), torch.randn(2, 11, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        read, state, _ = memory(x)
    assert state.memory.dtype == torch.float32 and read.isfinite().all()
    assert (read.float() - memory(x)[0]).abs().max() < 0.05


def test_gate_entropy_and_share():
    torch.manual_seed(0)
    gate, (y, m) = MemoryGate(6), torch.randn(2, 2, 5, 6)
    out, entropy, share = gate(y, m)
    g = torch.sigmoid(gate.gate(torch.cat([F.rms_norm(y, (6,), eps=1e-6), F.rms_norm(m, (6,), eps=1e-6)], -1)))
    torch.testing.assert_close(entropy, -(g * g.log() + (1 - g) * (1 - g).log()).mean())
    torch.testing.assert_close(out, g * F.rms_norm(y, (6,), eps=1e-6) + (1 - g) * F.rms_norm(m, (6,), eps=1e-6))
    assert 0 < share < 1
    torch.nn.init.constant_(gate.gate.bias, 1e4)  # saturated: no entropy, no memory, still finite
    out, entropy, share = gate(y, m)
    assert entropy == 0 and share < 1e-5 and out.isfinite().all()
    assert gate(y, None)[1:] == (None, None)


@pytest.mark.slow
def test_a_memory_in_training_stays_finite_over_16_000_tokens():
    """AdamW at the high rate 0.01 moves the gates while one long text is read, its state carried from step to step."""
    torch.manual_seed(0)
    memory = NeuralMemory(d_model=8, n_heads=1, chunk=16, ltm_tokens=2048, conv_kernel=2)
    optimizer, state, before = torch.optim.AdamW(memory.parameters(), lr=0.01), None, None
    losses = []
    for step in range(1000):
        x = torch.randn(2, 16, 8)
        read, state, before = memory(x, state, before)
        loss = (read[:, 1:] - x[:, :-1]).square().mean()  # say the token before
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        state, before = MemoryState(*(part.detach() for part in state)), before.detach()
        losses.append(loss.item())
        assert largest(state).max() < 2 * 2048 * 16, step
    assert torch.tensor(losses).isfinite().all() and sum(losses[-50:]) < sum(losses[:50])
    assert all(p.isfinite().all() for p in memory.parameters())
