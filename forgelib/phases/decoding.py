"""Greedy decoding of a packed model, native where this machine and the architecture allow it, and saying so.

text = greedy(model, input_ids, max_new_tokens=64)
text.ids, text.how           "native, AVX-512 VNNI", or "torch", how where it is slow, and the reason

A short prompt is read natively, token after token; a long one by torch at once, whose cache the decoder takes over.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM

from forgelib.models import CognateForCausalLM
from forgelib.quant import PATHS, CannotDecode, Decoder
from forgelib.quant.blueprint import Attention, Block, Blueprint, FeedForward, Memory, Recursion, Rotary

#: A longer prompt is read by torch. At SmolLM2's sizes the two are even at about 24 tokens (torch multiplies many at
#: once); the 25M Cognate is read natively in less time up to 256.
SHORT_PROMPT = 32


@dataclass(frozen=True)
class Decoded:
    """ids: new token ids [N], the end token included. how: who decoded, in words. cycles: recursion cycles of each
    token read after the prompt (native Cognate only)."""

    ids: Tensor
    how: str
    cycles: tuple[int, ...] = ()


def native_decoder(model: PreTrainedModel) -> Decoder:
    """A native decoder of a packed model. Raises CannotDecode with the reason where there is none."""
    return Decoder(blueprint(model))


@torch.no_grad()
def greedy(
    model: PreTrainedModel,
    input_ids: Tensor,
    max_new_tokens: int,
    end: Collection[int] = (),
    decoder: Decoder | None = None,
) -> Decoded:
    """The likeliest token, again and again, until one of `end` or `max_new_tokens`.

    Args: input_ids: [1, T] without padding. decoder: of this model, from before, instead of a new one.
    Raises ValueError for a batch or an empty prompt, FloatingPointError for logits that are no numbers.
    """
    if input_ids.dim() != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] < 1 or max_new_tokens < 1:
        raise ValueError(
            "one prompt [1, T] of at least 1 token is continued by at least 1: "
            f"got {list(input_ids.shape)}, max_new_tokens = {max_new_tokens}"
        )
    try:
        decoder = native_decoder(model) if decoder is None else decoder
    except CannotDecode as error:
        return _by_torch(model, input_ids, max_new_tokens, end, str(error))
    ids, cycles = [], []
    logits = read_prompt(model, decoder, input_ids, max_new_tokens)
    while True:
        ids.append(_likeliest(logits))
        if ids[-1] in end or len(ids) == max_new_tokens:
            break
        logits = decoder.step(ids[-1])
        cycles.append(decoder.cycles)
    return Decoded(torch.tensor(ids), f"native, {PATHS[decoder.path]}", tuple(cycles))


@torch.no_grad()
def read_prompt(model: PreTrainedModel, decoder: Decoder, input_ids: Tensor, more: int) -> Tensor:
    """Start the decoder with a prompt [1, T] and room for `more` tokens; the logits [V] after its last token."""
    length = input_ids.shape[1]
    decoder.start(length + more)
    if length <= SHORT_PROMPT:
        *before, last = input_ids[0].tolist()
        for token in before:
            decoder.step(token, logits=False)
        return decoder.step(last)
    output = model(input_ids=input_ids, use_cache=True, logits_to_keep=1)
    cache = output.past_key_values
    keys_values = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
    memories = [
        None if memory is None else (memory[0].memory[0], memory[0].momentum[0], memory[1][0])
        for memory in getattr(cache, "memories", ())
    ]
    decoder.take_over(length, keys_values, memories)
    return output.logits[0, -1]


def _by_torch(
    model: PreTrainedModel, input_ids: Tensor, max_new_tokens: int, end: Collection[int], why: str
) -> Decoded:
    """With a cache of keys and values where the model has one; else (Mamba) every token reads the whole text again."""
    ids, text, how, more = [], input_ids, "torch", {}
    while len(ids) < max_new_tokens and not (ids and ids[-1] in end):
        output = model(input_ids=text[:, -1:] if more else text, use_cache=True, **more)
        ids.append(_likeliest(output.logits[0, -1]))
        text = torch.cat([text, torch.tensor([[ids[-1]]], device=text.device)], dim=1)
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            how = "torch, the whole text again for every token"
        else:
            more = {"past_key_values": cache}
    return Decoded(torch.tensor(ids), f"{how}: {why}")


def _likeliest(logits: Tensor) -> int:
    largest, token = logits.max(dim=-1)
    if not bool(torch.isfinite(largest)):
        raise FloatingPointError(
            "the logits hold NaN or infinity: the model is damaged, go back to its last good state"
        )
    return int(token)


def blueprint(model: PreTrainedModel) -> Blueprint:
    """What a native decoder is told about the model. Raises CannotDecode with the reason where it knows it not."""
    draw: dict[type, Callable[[PreTrainedModel], Blueprint]] = {
        LlamaForCausalLM: _llama,
        Qwen2ForCausalLM: _llama,
        CognateForCausalLM: _cognate,
    }
    if type(model) not in draw:
        known = ", ".join(kind.__name__ for kind in draw)
        raise CannotDecode(f"{type(model).__name__} is no architecture of the native decoder ({known})")
    if model.training:
        raise CannotDecode("the model is in training mode: call eval() first")
    hooked = next((name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks), None)
    if hooked is not None:
        raise CannotDecode(f"{hooked or 'the model'} has hooks, which native code does not call")
    return draw[type(model)](model)


def _llama(model: LlamaForCausalLM | Qwen2ForCausalLM) -> Blueprint:
    c, inner = model.config, model.model
    if c.hidden_act != "silu":
        raise CannotDecode(f"its feed-forward uses {c.hidden_act}, the decoder SiLU")
    if set(getattr(c, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        raise CannotDecode("some of its layers attend to a window, others to everything")
    if inner.rotary_emb.rope_type not in ("default", "linear", "llama3"):
        raise CannotDecode(f"its rotary frequencies depend on the text ({inner.rotary_emb.rope_type})")
    rotary = Rotary(inner.rotary_emb.inv_freq, inner.rotary_emb.attention_scaling, pairs=False)
    blocks = [
        Block(
            layer.input_layernorm.weight,
            Attention(*(getattr(layer.self_attn, f"{name}_proj") for name in "qkvo")),
            layer.post_attention_layernorm.weight,
            _feed(layer.mlp),
        )
        for layer in inner.layers
    ]
    return Blueprint(
        embedding=inner.embed_tokens.weight,
        blocks=blocks,
        norm=inner.norm.weight,
        head=model.lm_head,
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_width=inner.layers[0].self_attn.head_dim,
        rotary=rotary,
        epsilon=c.rms_norm_eps,
    )


def _feed(layer: nn.Module) -> FeedForward:
    return FeedForward(layer.gate_proj, layer.up_proj, layer.down_proj)


def _cognate(model: CognateForCausalLM) -> Blueprint:
    c, inner = model.config, model.model
    half = c.d_model // c.n_heads // 2
    frequencies = c.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    recursion = Recursion(
        blocks=[
            Block(part.attention_norm.weight, _attention(part), part.feed_forward_norm.weight, _feed(part.feed_forward))
            for part in inner.recursion
        ],
        first_latent=inner.first_latent,
        halting=inner.halting.probe,
        micro_steps=c.n_micro_steps,
        max_cycles=c.max_cycles,
        threshold=c.act_threshold,
    )
    blocks = [
        Block(
            block.mix_norm.weight,
            _attention(block),
            block.feed_forward_norm.weight,
            _feed(block.feed_forward),
            None if block.memory is None else _memory(block, inner.use_memory),
        )
        for block in inner.blocks
    ]
    return Blueprint(
        embedding=inner.embed_tokens.weight,
        blocks=blocks,
        norm=inner.context_norm.weight,
        head=model.lm_head,
        heads=c.n_heads,
        kv_heads=c.n_heads,
        head_width=2 * half,
        rotary=Rotary(frequencies, 1.0, pairs=True),
        epsilon=inner.context_norm.eps,
        window=c.window,
        recursion=recursion,
    )


def _attention(block: nn.Module) -> Attention:
    parts = block.attention
    return Attention(parts.q_proj, parts.k_proj, parts.v_proj, block.out_proj)


def _memory(block: nn.Module, on: bool) -> Memory:
    memory, gate = block.memory, block.memory_gate
    return Memory(
        query=memory.query,
        key=memory.key,
        value=memory.value,
        gates=memory.gates,
        conv=memory.conv.weight,
        initial=memory.initial_memory,
        horizon=memory.ltm_tokens,
        y_norm=gate.y_norm.weight,
        m_norm=gate.m_norm.weight,
        mix=gate.gate,
        on=on,
    )
