"""CognateForCausalLM: a TRM recursion over a Titans memory-as-gate (MAG) backbone, as a Hugging Face model.

    tokens -> embedding -> blocks [attention window | long-term memory -> gate -> SwiGLU] -> x
    x -> cycles of the tiny recursion net on (x, y, z), each token halting when it is sure -> y -> logits

Shape legend: B batch, T new tokens, S keys in reach, D width, H heads.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel

from .attention import SlidingWindowAttention
from .block import CognateBlock, Reach
from .cache import CognateCache
from .configuration import CYCLES_LIMIT, CognateConfig
from .gate import MemoryGate
from .halting import HaltingHead
from .layers import SwiGLU, token_cross_entropy
from .memory import NeuralMemory
from .output import CognateOutput
from .recursion import RecursionLayer, active_tokens, put_tokens, refine, supervision_weights, take_tokens

EPSILON = 1e-6


class CognatePreTrainedModel(PreTrainedModel):
    config_class = CognateConfig
    base_model_prefix = "model"
    _is_stateful = True
    _no_split_modules = ("CognateBlock", "RecursionLayer")

    def _init_weights(self, module: nn.Module) -> None:
        """All initial values in one place: normal(0, 0.02) matrices, quiet gates, a memory that writes gently."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, nn.Conv1d):
            nn.init.uniform_(module.weight, -(self.config.conv_kernel**-0.5), self.config.conv_kernel**-0.5)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, NeuralMemory):
            nn.init.normal_(module.initial_memory, std=std)
        elif isinstance(module, HaltingHead):
            nn.init.constant_(module.step_accuracy, -1.0)
        elif isinstance(module, CognateModel):
            nn.init.normal_(module.first_latent, std=std)
        self._init_gate_biases(module)

    def _init_gate_biases(self, module: nn.Module) -> None:
        if isinstance(module, NeuralMemory):
            heads = module.n_heads
            # eta 0.13: little momentum; theta 0.5: write half the surprise; alpha near its floor
            for gate, bias in enumerate((-1.0, 0.7, -5.0)):
                nn.init.constant_(module.gates.bias[gate * heads : (gate + 1) * heads], bias)
        elif isinstance(module, HaltingHead):
            nn.init.constant_(module.probe.bias, -2.0)


class CognateModel(CognatePreTrainedModel):
    """Backbone and recursion, without the head."""

    def __init__(self, config: CognateConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(self._block(i) for i in range(config.n_layers))
        self.context_norm = nn.RMSNorm(config.d_model, eps=EPSILON)
        self.first_latent = nn.Parameter(torch.zeros(config.d_model))
        self.recursion = nn.ModuleList(
            RecursionLayer(config.d_model, self._attention(), SwiGLU(config.d_model, config.d_ff))
            for _ in range(config.recursion_layers)
        )
        self.halting = HaltingHead(config.d_model, CYCLES_LIMIT)
        self.use_memory = True
        self.post_init()

    def _attention(self) -> SlidingWindowAttention:
        c = self.config
        return SlidingWindowAttention(c.d_model, c.n_heads, c.window, c.rope_theta)

    def _block(self, index: int) -> CognateBlock:
        c, memory, gate = self.config, None, None
        if index in c.memory_layers:
            memory = NeuralMemory(c.d_model, c.n_heads, c.memory_chunk, c.ltm_tokens, c.conv_kernel)
            gate = MemoryGate(c.d_model)
        return CognateBlock(index, c.d_model, self._attention(), SwiGLU(c.d_model, c.d_ff), memory, gate)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: CognateCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        halt: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> CognateOutput:
        """States y [B, T, D] after the recursion.

        Args:
            attention_mask: [B, S] 1 for text, 0 for padding on the left; the new tokens are its last T columns.
            halt: stop each token once it is sure; None means: at inference, not in training.
            output_hidden_states: give the embeddings, the output of each block, and y. None means: as the config says.
        Attention weights are never held: like Mamba in transformers, the model gives none where they are asked for.
        Raises ValueError for a text without tokens.
        """
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if x.shape[1] == 0:
            raise ValueError("the text has no tokens: give at least one")
        cache = self._cache(past_key_values, use_cache)
        reach = self._reach(x, attention_mask, cache)
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        entropies, shares, states = [], [], (x,) * keep
        for block in self.blocks:
            x, entropy, share = block(x, reach, self.use_memory)
            states += (x,) * keep
            if entropy is not None:
                entropies.append(entropy)
                shares.append(share)
        x = self.context_norm(x)
        halt = not self.training if halt is None else halt
        output = self._recurse_until_sure(x, reach) if halt else self._recurse_fully(x, reach)
        output.past_key_values = cache
        output.hidden_states = (*states, output.last_hidden_state) if keep else None
        if entropies:
            output.gate_entropy, output.memory_share = torch.stack(entropies).mean(), torch.stack(shares)
        return output

    def _cache(self, past: object, use_cache: bool | None) -> CognateCache | None:
        if isinstance(past, CognateCache):
            return past
        if past is not None and past.get_seq_length() > 0:
            raise ValueError(f"a Cognate model continues from a CognateCache, not from a filled {type(past).__name__}")
        wanted = not self.training if use_cache is None else use_cache
        if not wanted:
            return None
        return CognateCache(self.config.n_layers, self.config.recursion_layers, self.config.window)

    def _reach(self, x: Tensor, attention_mask: Tensor | None, cache: CognateCache | None) -> Reach:
        batch, n_new = x.shape[:2]
        valid = None
        if attention_mask is not None:
            if attention_mask.dim() != 2:
                raise ValueError(f"attention_mask must be [batch, tokens], not {attention_mask.dim()}-dimensional")
            valid = attention_mask[:, -n_new:].bool()
            valid = None if bool(valid.all()) else valid
        seen, kept = (0, 0) if cache is None else (cache.get_seq_length(), cache.layers[0].get_mask_sizes(0)[0])
        if cache is not None:
            valid = cache.extend_valid(valid, batch, n_new, x.device)
        steps = torch.arange(n_new, device=x.device)
        return Reach(steps + seen, steps + kept, valid, cache)

    def _contexts(self, x: Tensor, reach: Reach) -> list[dict]:
        """What each recursion layer attends to: keys and values of x, computed once for all cycles."""
        contexts = []
        for i, layer in enumerate(self.recursion):
            k, v = reach.keys_values(layer.attention, x, len(self.blocks) + i)
            contexts.append({"k": k, "v": v, "valid": reach.valid, "positions": reach.positions, "slots": reach.slots})
        return contexts

    def _net(self, contexts: list[dict]):
        def net(u: Tensor) -> Tensor:
            for layer, context in zip(self.recursion, contexts, strict=True):
                u = layer(u, context)
            return u

        return net

    def _recurse_fully(self, x: Tensor, reach: Reach) -> CognateOutput:
        """All cycles for all tokens, (y, z) detached between them: the training path."""
        net, y, z = self._net(self._contexts(x, reach)), x, self.first_latent.expand_as(x)
        states = []
        for _ in range(self.config.max_cycles):
            y, z = refine(net, x, y, z, self.config.n_micro_steps)
            states.append(y)
            y, z = y.detach(), z.detach()
        cycles = torch.full(x.shape[:2], self.config.max_cycles, device=x.device)
        return CognateOutput(last_hidden_state=states[-1], cycle_states=states, n_cycles=cycles)

    def _recurse_until_sure(self, x: Tensor, reach: Reach) -> CognateOutput:
        """Each token runs until its halting probability reaches the threshold; only the others are computed."""
        contexts = self._contexts(x, reach)
        y, z = x, self.first_latent.expand_as(x)
        running = reach.new_valid(x.shape[1])
        running = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if running is None else running.clone()
        cycles = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
        sure = torch.zeros(x.shape[:2], device=x.device)
        for _ in range(self.config.max_cycles):
            if bool(running.all()):
                y, z = refine(self._net(contexts), x, y, z, self.config.n_micro_steps)
            else:
                y, z = self._refine_some(running, contexts, x, y, z)
            cycles += running
            sure = torch.where(running, torch.sigmoid(self.halting(y).float()), sure)
            running = running & (sure < self.config.act_threshold)
            if not bool(running.any()):
                break
        return CognateOutput(last_hidden_state=y, n_cycles=cycles, halt_probability=sure)

    def _refine_some(self, running: Tensor, contexts: list[dict], x: Tensor, y: Tensor, z: Tensor):
        index, real = active_tokens(running)
        some = [{**c, "positions": c["positions"][index], "slots": c["slots"][index]} for c in contexts]
        old = (take_tokens(part, index) for part in (x, y, z))
        new_y, new_z = refine(self._net(some), *old, self.config.n_micro_steps)
        return put_tokens(y, index, new_y, real), put_tokens(z, index, new_z, real)


class CognateForCausalLM(CognatePreTrainedModel, GenerationMixin):
    """The language model; its head is the embedding.

    In training (`model.train()` with labels) the loss is the deeply supervised one: each cycle's cross-entropy,
    weighted 0.5 ... 1.0 and normalised to weight 1, plus the halting loss, minus the gate-entropy bonus.
    In evaluation it is the plain cross-entropy of the tokens as they halted.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (the library's own form)
    accepts_loss_kwargs = False  # the loss is a mean over this batch: transformers' Trainer divides when it accumulates

    def __init__(self, config: CognateConfig):
        super().__init__(config)
        self.model = CognateModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.embed_tokens = value

    def set_dials(self, dials: Mapping[str, float]) -> None:
        """Set halting threshold, recursion depth or memory horizon (`CognateConfig.dials`) of this built model."""
        for name, value in dials.items():
            if name not in self.config.dials:
                raise ValueError(f"{name} is no dial of this model; there are {', '.join(self.config.dials)}")
            setattr(self.config, name, value)
        for block in self.model.blocks:
            if block.memory is not None:
                block.memory.ltm_tokens = self.config.ltm_tokens

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: CognateCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        halt: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> CognateOutput:
        """Logits [B, T or logits_to_keep, V] and, with labels [B, T] (-100: ignored), the loss.

        Args:
            logits_to_keep: compute logits of the last so many tokens only (0: all); the loss is not affected.
        """
        asked = (past_key_values, inputs_embeds, use_cache, halt, output_hidden_states)
        output = self.model(input_ids, attention_mask, *asked)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        output.logits = self.lm_head(output.last_hidden_state[:, kept])
        if labels is not None:
            self._add_loss(output, labels)
        output.cycle_states = None
        return output

    def _add_loss(self, output: CognateOutput, labels: Tensor) -> None:
        states = output.cycle_states or [output.last_hidden_state]
        targets = labels[:, 1:]
        counted = targets != -100
        if not bool(counted.any()):
            raise ValueError("labels hold no token to predict: every label after the first is -100")
        weights, losses, act_losses = supervision_weights(len(states)), [], []
        for cycle, y in enumerate(states):
            hidden = y[:, :-1][counted]
            token_losses, correct = token_cross_entropy(hidden, self.lm_head.weight, targets[counted])
            losses.append(token_losses.mean())
            if output.cycle_states is not None:
                act_losses.append(self.model.halting.loss(self.model.halting(hidden), correct, cycle))
        output.cycle_losses = torch.stack(losses).detach()
        if not self.training:
            output.loss = losses[-1]
            return
        output.act_loss = torch.stack(act_losses).mean()
        supervised = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
        bonus = 0.0 if output.gate_entropy is None else self.config.gate_entropy_weight * output.gate_entropy
        output.loss = supervised + self.config.act_weight * output.act_loss - bonus


AutoConfig.register("cognate", CognateConfig, exist_ok=True)
AutoModel.register(CognateConfig, CognateModel, exist_ok=True)
AutoModelForCausalLM.register(CognateConfig, CognateForCausalLM, exist_ok=True)
