"""(i) Packed ternary layers against torch's float32, one process: single layers, a stack, a whole model's decoding.

    layers   forgelib.quant.multiply, rounding of the activations and making the output included, against F.linear
    stack    twelve blocks of width 576 (48M weights), q, k, v and gate, up in one call each, module calls included
    decode   greedy decoding of the 25M Cognate and of a Llama with the sizes of SmolLM2-135M, random weights: torch's
             generate in float32 and with packed layers, and the native decoder with packed ones; as a control, the
             native decoder in float32, which shows how much is won by leaving torch and how much by ternary weights

They take turns, so a busy machine slows all; each turn is timed in the thread's own processor time, which does not
count waiting for the other processes, and a figure is a median over turns. Within a turn, weights may stay in the
cache, if they fit, as they do while a model generates. A busy neighbour still takes its share of
memory and cache, so the ratios of two runs differ. G/s counts ternary multiply-adds: a
processor with AVX-512 VNNI can do 64 a cycle if it starts one dot product a cycle, which bounds every speed-up.
"""

import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bench.table import main
from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.phases.decoding import greedy, native_decoder
from forgelib.quant import SharedInput, TernaryLinear, convert, kernel_in_use, multiply, pack_model

TITLE = "(i) packed ternary weights against torch float32"
SHAPES = [(512, 512), (2048, 512), (512, 2048), (576, 576), (1536, 576), (576, 1536), (4096, 4096)]
TOKENS = (1, 4, 8, 64, 256)
#: Multiply-adds of a turn: long enough for the clock, short enough to alternate.
TURN = 3e7
#: Calls of a turn at least, up to 8 tokens: who generates comes back to the same weights.
CALLS = 8


def turns(contestants: list[Callable[[], object]], calls: int, repeats: int) -> list[list[float]]:
    """Microseconds a call of each contestant, for each repeat, the first not counted."""
    taken: list[list[float]] = [[] for _ in contestants]
    for repeat in range(-1, repeats):
        for call, times in zip(contestants, taken, strict=True):
            started = time.thread_time_ns()
            for _ in range(calls):
                call()
            if repeat >= 0:
                times.append((time.thread_time_ns() - started) / calls / 1e3)
    return taken


def row(name: str, tokens: int, taken: list[list[float]], **more: object) -> dict:
    """Medians of float32 and ternary, and the median of the ratios of their turns."""
    full, ternary = taken
    return {
        "what": name,
        "tokens": tokens,
        "float32 us": statistics.median(full),
        "ternary us": statistics.median(ternary),
        "speed-up": statistics.median(a / b for a, b in zip(full, ternary, strict=True)),
        **more,
    }


def layers(quick: bool) -> list[dict]:
    """A row for each shape and number of tokens."""
    rows = []
    for outputs, inputs in SHAPES[:2] if quick else SHAPES:
        linear = nn.Linear(inputs, outputs, bias=False)
        packed = TernaryLinear.from_linear(linear).pack().operand()
        for tokens in TOKENS:
            x, work = torch.randn(tokens, inputs), outputs * inputs * tokens
            calls = max(CALLS if tokens <= 8 else 1, int(TURN / work))
            contestants = [lambda x=x, w=linear.weight: F.linear(x, w), lambda x=x, p=packed: multiply(p, x)]
            taken = turns(contestants, calls, 2 if quick else 9 if work > 1e9 else 25)
            rows.append(
                row(f"{outputs} x {inputs}", tokens, taken, **{"G/s": work / 1e3 / statistics.median(taken[1])})
            )
    return rows


class Block(nn.Module):
    """The linear layers of a Llama block without what lies between them."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        self.q(x), self.k(x)
        x = self.out(self.v(x))
        self.gate(x)
        return self.down(self.up(x))


def packed_stack(stack: nn.Sequential) -> nn.Sequential:
    """The same blocks with packed layers, those of one input together."""
    stack = copy.deepcopy(stack)
    for block in stack:
        for name, linear in list(block.named_children()):
            setattr(block, name, TernaryLinear.from_linear(linear).pack())
        SharedInput([block.q, block.k, block.v])
        SharedInput([block.gate, block.up])
    return stack


def stack(quick: bool) -> list[dict]:
    """A row for each number of tokens."""
    blocks = nn.Sequential(*(Block(576, 1536) for _ in range(2 if quick else 12)))
    packed = packed_stack(blocks)
    rows = []
    for tokens in (1, 4, 8):
        x = torch.randn(tokens, 576)
        taken = turns([lambda x=x: blocks(x), lambda x=x: packed(x)], CALLS, 3 if quick else 15)
        rows.append(row(f"{len(blocks)} blocks of 576", tokens, taken))
    return rows


def cognate(quick: bool) -> CognateForCausalLM:
    """The 25M model; with random weights and this threshold every token takes its three cycles."""
    return CognateForCausalLM(CognateConfig.full(act_threshold=0.9999, **({"n_layers": 1} if quick else {})))


def llama(quick: bool) -> LlamaForCausalLM:
    """SmolLM2-135M's sizes."""
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 1 if quick else 30}
    sizes = {"vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, **heads}
    return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True, eos_token_id=None))


def decode(name: str, full: PreTrainedModel, quick: bool) -> list[dict]:
    """A row for each way of decoding: microseconds of a new token, reading the prompt of 16 included."""
    ternary = copy.deepcopy(full)
    convert(ternary)
    pack_model(ternary)
    ids, n_tokens = torch.arange(16)[None], 4 if quick else 64
    options = {"max_new_tokens": n_tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    own = {"float32": native_decoder(full), "packed": native_decoder(ternary)}
    ways = {
        "torch float32": lambda: full.generate(ids, **options),
        "torch packed": lambda: ternary.generate(ids, **options),
        "native float32": lambda: greedy(full, ids, n_tokens, decoder=own["float32"]),
        "native packed": lambda: greedy(ternary, ids, n_tokens, decoder=own["packed"]),
    }
    taken = [[t / n_tokens for t in times] for times in turns(list(ways.values()), 1, 2 if quick else 7)]
    return [
        {
            "what": f"{name}, {way}",
            "tokens": 1,
            "us a token": statistics.median(times),
            "tokens/s": 1e6 / statistics.median(times),
            "speed-up": statistics.median(a / b for a, b in zip(taken[0], times, strict=True)),
        }
        for way, times in zip(ways, taken, strict=True)
    ]


@torch.no_grad()
def run(quick: bool = False) -> list[dict]:
    """Rows of layers, stack and models: medians in microseconds of processor time, and how many times as fast."""
    torch.manual_seed(0)
    rows = [*layers(quick), *stack(quick)]
    for name, build in (("25M Cognate", cognate), ("SmolLM2-135M", llama)):
        rows += decode(f"{name}{', one layer' if quick else ''}", build(quick).eval(), quick)
    return [{**r, "kernel": kernel_in_use()} if i == 0 else r for i, r in enumerate(rows)]


if __name__ == "__main__":
    main(TITLE, run)
