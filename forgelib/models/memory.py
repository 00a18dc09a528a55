"""A neural long-term memory that learns while it reads (Titans, 2501.00663), exact and parallel over chunks.

The memory of a head is a matrix M [dv, dk] (Titans with memory depth L_M = 1). Each token asks it for its
value, and what it got wrong - the surprise - is written back with momentum and decay:

    e_t = v_t - M_{t-1} k_t                    surprise = -gradient of 1/2 ||M k - v||^2 at M_{t-1}
    S_t = eta_t S_{t-1} + theta_t e_t k_t^T    momentum of past surprise      (Titans, eq. 10)
    M_t = (1 - alpha_t) M_{t-1} + S_t          decay, then write              (Titans, eq. 13)
    o_t = M_t q_t                              read

eta, theta, alpha in (0, 1) depend on the token. Because M is linear, M_{t-1} inside a chunk is an explicit sum of
what came before, so all surprises of a chunk solve one unit-lower-triangular system (I + L) e = r.
Nothing is approximated: the chunked and the token-by-token memory are the same function.

Shape legend: B batch, H heads, T tokens, C tokens of a chunk, N chunks, k width of keys = width of values.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEGLIGIBLE = -30.0


class MemoryState(NamedTuple):
    """What has been learnt so far: memory M and momentum S, both [B, H, dv, dk], float32."""

    memory: Tensor
    momentum: Tensor


class Writes(NamedTuple):
    """What a text writes: queries, keys, values [B, H, T, k] and the gates eta, theta, decay = 1 - alpha [B, H, T]."""

    q: Tensor
    k: Tensor
    v: Tensor
    eta: Tensor
    theta: Tensor
    decay: Tensor


def read_sequentially(state: MemoryState, writes: Writes) -> tuple[Tensor, MemoryState]:
    """The definition, one token at a time: the reference, and the way of generating. Returns o [B, H, T, k]."""
    memory, momentum = state
    outputs = []
    for t in range(writes.q.shape[2]):
        q, k, v = writes.q[:, :, t, :, None], writes.k[:, :, t, :, None], writes.v[:, :, t, :, None]
        eta, theta, decay = (gate[:, :, t, None, None] for gate in (writes.eta, writes.theta, writes.decay))
        surprise = v - memory @ k
        momentum = eta * momentum + theta * surprise @ k.transpose(-1, -2)
        memory = decay * memory + momentum
        outputs.append((memory @ q).squeeze(-1))
    return torch.stack(outputs, dim=2), MemoryState(memory, momentum)


def bounded_gates(logits: Tensor, ltm_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """eta, theta and decay [B, H, T] from logits [B, 3H, T], such that no text can make the memory diverge.

        decay = (1 - 1/ltm_tokens) sigmoid(-a)     eta = decay sigmoid(e) / 2     theta = decay sigmoid(-e) sigmoid(h)

    Gates free in (0, 1) are not stable: with eta 0.8, theta 0.5 and random keys M overflows within 10,000 tokens,
    because momentum goes on pushing while other keys are read. Under these bounds, and with |k| = 1, the larger of
    |M| and |M + S| (Frobenius) obeys V_t <= decay_t V_{t-1} + 2 theta_t |v_t|, so it never exceeds
    2 ltm_tokens max |v|: M_t and M_t + S_t are combinations of M_{t-1} and M_{t-1} + S_{t-1} whose coefficients, one
    of them times (c I - d k k^T) with 0 <= d <= 2c, add up to decay_t.
    """
    e, h, a = logits.chunk(3, dim=1)
    decay = (1.0 - 1.0 / ltm_tokens) * torch.sigmoid(-a)
    return decay * torch.sigmoid(e) / 2, decay * torch.sigmoid(-e) * torch.sigmoid(h), decay


def running_products(gates: Tensor) -> tuple[Tensor, Tensor]:
    """p_t = g_1 .. g_t [..., C] and the matrix p_t / p_s for s <= t, 0 above the diagonal [..., C, C].

    Products below e^NEGLIGIBLE (1e-13, far under float32's resolution) become 0: denormal numbers would be
    multiplied in the CPU's microcode, ten times slower. The sums of logarithms are subtracted in float64: near a
    closed gate they are large, and float32 would lose 1e-5 of the product.
    """
    sums = gates.clamp_min(1e-30).log().double().cumsum(-1)
    logs, differences = sums.to(gates.dtype), (sums[..., :, None] - sums[..., None, :]).to(gates.dtype)
    above = torch.ones(differences.shape[-2:], dtype=torch.bool, device=gates.device).triu(1)
    gone = above | (differences < NEGLIGIBLE)
    products = logs.masked_fill(logs < NEGLIGIBLE, float("-inf")).exp()
    return products, differences.masked_fill(gone, float("-inf")).exp()


def read_in_chunks(state: MemoryState, writes: Writes, chunk: int) -> tuple[Tensor, MemoryState]:
    """The same function as `read_sequentially`, `chunk` tokens at once and what remains as one shorter chunk."""
    length = writes.q.shape[2]
    whole = length - length % chunk
    outputs = []
    for start, stop, size in ((0, whole, chunk), (whole, length, length - whole)):
        if stop > start:
            read, state = _read_whole_chunks(state, Writes(*(x[:, :, start:stop] for x in writes)), size)
            outputs.append(read)
    return torch.cat(outputs, dim=2), state


def _read_whole_chunks(state: MemoryState, writes: Writes, size: int) -> tuple[Tensor, MemoryState]:
    """T = N x `size`. With A[t, s] = sum over s <= r <= t of (P_t / P_r)(E_r / E_s), P and E running products of
    decay and eta within a chunk, and c_t = sum over r <= t of (P_t / P_r) E_r:

        M_t = P_t M_0 + c_t S_0 + sum_s A[t, s] theta_s e_s k_s^T
        S_t = E_t S_0 + sum_s (E_t / E_s) theta_s e_s k_s^T
        (I + L) e = v - P_{t-1} M_0 k - c_{t-1} S_0 k,      L[t, s] = A[t-1, s] theta_s (k_s . k_t)

    Only the surprises and the state Z = [M | S]^T, [2k, k], are found chunk after chunk; the rest, for all at once.
    """
    q, k, v, eta, theta, decay = (x.unflatten(2, (-1, size)) for x in writes)  # [B, H, N, C, ...]
    kept, kept_since = running_products(decay)  # P_t and P_t / P_s
    carried, carried_since = running_products(eta)  # E_t and E_t / E_s
    influence = kept_since @ carried_since  # A[t, s]
    from_push = (kept_since @ carried[..., None]).squeeze(-1)  # c_t
    influence_before = F.pad(influence, (0, 0, 1, 0))[..., :-1, :]  # row t holds A[t-1, s]
    kept_before, push_before = F.pad(kept, (1, 0), value=1.0)[..., :-1], F.pad(from_push, (1, 0))[..., :-1]

    system = influence_before * (k @ k.transpose(-1, -2)) * theta[..., None, :]
    known = torch.cat([v, kept_before[..., None] * k, push_before[..., None] * k], dim=-1)
    solved = torch.linalg.solve_triangular(system, known, upper=False, unitriangular=True)
    e_values, e_state = solved[..., : k.shape[-1]], solved[..., k.shape[-1] :]  # e = e_values - e_state Z

    recall = influence * (q @ k.transpose(-1, -2)) * theta[..., None, :]
    ask = torch.cat([kept[..., None] * q, from_push[..., None] * q], dim=-1)
    write = torch.cat([influence[..., -1, :, None], carried_since[..., -1, :, None]], dim=-1) * theta[..., None]
    write = (write[..., None] * k[..., None, :]).flatten(-2).transpose(-1, -2)  # [B, H, N, 2k, C]
    fade = torch.stack([kept, from_push, torch.zeros_like(kept), carried], dim=-1)[..., -1, :].unflatten(-1, (2, 2))

    now, before, surprises = torch.cat(state, dim=-1).transpose(-1, -2), [], []
    for own, inherited, write_n, fade_n in zip(*(x.unbind(2) for x in (e_values, e_state, write, fade)), strict=True):
        before.append(now)
        surprises.append(own - inherited @ now)
        faded = (fade_n @ now.unflatten(2, (2, -1)).flatten(3)).view(now.shape)  # [[P, c], [0, E]] of M and S
        now = faded + write_n @ surprises[-1]
    output = recall @ torch.stack(surprises, dim=2) + ask @ torch.stack(before, dim=2)
    return output.flatten(2, 3), MemoryState(*now.transpose(-1, -2).chunk(2, dim=-1))


class NeuralMemory(nn.Module):
    """Long-term memory of `n_heads` matrices; in: states [B, T, D], out: what they recall [B, T, D].

    q, k, v are projected, mixed with the `conv_kernel - 1` tokens before by a causal depthwise convolution and passed
    through SiLU; q and k are L2-normalised (Titans, section 4.4). alpha never falls below 1 / ltm_tokens, the horizon
    of the memory, and `bounded_gates` keeps it finite on any text.
    """

    def __init__(self, d_model: int, n_heads: int, chunk: int, ltm_tokens: int, conv_kernel: int):
        super().__init__()
        self.n_heads, self.chunk, self.ltm_tokens, self.conv_kernel = n_heads, chunk, ltm_tokens, conv_kernel
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.conv = nn.Conv1d(3 * d_model, 3 * d_model, conv_kernel, groups=3 * d_model, bias=False)
        self.gates = nn.Linear(d_model, 3 * n_heads)
        width = d_model // n_heads
        self.initial_memory = nn.Parameter(torch.zeros(n_heads, width, width))

    def initial_state(self, batch: int) -> MemoryState:
        """A fresh memory: the learned M_0, and no momentum."""
        memory = self.initial_memory.float().expand(batch, -1, -1, -1)
        return MemoryState(memory, torch.zeros_like(memory))

    def writes(self, x: Tensor, before: Tensor | None, valid: Tensor | None) -> tuple[Writes, Tensor]:
        """Gates, keys, queries and values of x, and the last `conv_kernel - 1` projected tokens for the next call.

        Args: x [B, T, D]; before [B, 3D, conv_kernel - 1] of the call before, or None at the start;
            valid [B, T], False at padding before the text, which then neither writes nor forgets.
        """
        projected = torch.cat([self.query(x), self.key(x), self.value(x)], dim=-1).transpose(1, 2)
        if valid is not None:
            projected = projected * valid[:, None]
        if before is None:
            before = projected.new_zeros(*projected.shape[:2], self.conv_kernel - 1)
        joined = torch.cat([before, projected], dim=-1)
        mixed = F.silu(self.conv(joined)).transpose(1, 2).float()
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in mixed.chunk(3, dim=-1))
        eta, theta, decay = bounded_gates(self.gates(x).float().transpose(1, 2), self.ltm_tokens)
        if valid is not None:
            theta = theta * valid[:, None]
            decay = torch.where(valid[:, None], decay, torch.ones_like(decay))
        norm = {"dim": -1, "eps": 1e-6}
        return Writes(F.normalize(q, **norm), F.normalize(k, **norm), v, eta, theta, decay), joined[
            ..., joined.shape[-1] - self.conv_kernel + 1 :
        ]

    def forward(
        self, x: Tensor, state: MemoryState | None = None, before: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, MemoryState, Tensor]:
        """Read and learn x [B, T, D]. Returns recalled [B, T, D], the new state and the convolution's tail."""
        writes, tail = self.writes(x, before, valid)
        state = self.initial_state(x.shape[0]) if state is None else state
        with torch.autocast(x.device.type, enabled=False):  # what is learnt over thousands of tokens stays float32
            if x.shape[1] == 1:
                recalled, state = read_sequentially(state, writes)
            else:
                recalled, state = read_in_chunks(state, writes, self.chunk)
        return recalled.transpose(1, 2).reshape(x.shape).to(x.dtype), state, tail
