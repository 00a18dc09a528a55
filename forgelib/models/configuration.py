"""The configuration of a Cognate model: TRM recursion over a Titans-MAG backbone."""

from transformers import PreTrainedConfig

#: Deep supervision never runs more cycles than this (the curriculum ends at 6).
CYCLES_LIMIT = 6


class CognateConfig(PreTrainedConfig):
    """Sizes and dials of `CognateForCausalLM`.

    Args:
        vocab_size: number of token ids; the embedding is tied to the output head.
        d_model: width D of the residual stream; a multiple of `n_heads`, with an even width per head.
        n_layers: number of backbone blocks.
        n_heads: attention heads, and heads of the long-term memory.
        d_ff: inner width of SwiGLU, in the backbone and in the recursion net.
        window: how many tokens attention sees, the current one included.
        memory_layers: which backbone blocks carry a long-term memory; None means all of them.
        memory_chunk: tokens processed in parallel by the memory. It changes speed, never results.
        ltm_tokens: horizon of the long-term memory: the forget gate never falls below 1/ltm_tokens,
            so an association is kept for at most about that many tokens.
        conv_kernel: width of the causal depthwise convolution before the memory's q, k and v.
        n_micro_steps: latent updates n per recursion cycle (2 given; the TRM paper uses 6).
        max_cycles: recursion cycles T_max, 1 to 6.
        recursion_layers: attention + SwiGLU layers in the shared recursion net (the paper found 2 best).
        act_threshold: a token stops recursing once its halting probability reaches this.
        act_weight, gate_entropy_weight: weights of the halting loss and of the gate-entropy bonus.
        rope_theta: base of the rotary positions.
    """

    model_type = "cognate"
    #: Settings that shape no weight and may be turned on a built model (`CognateForCausalLM.set_dials`).
    dials = ("act_threshold", "max_cycles", "ltm_tokens")
    attribute_map = {  # noqa: RUF012 (the library's own form)
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "d_ff",
    }

    def __init__(
        self,
        vocab_size: int = 1024,
        d_model: int = 128,
        n_layers: int = 4,
        n_heads: int = 4,
        d_ff: int = 344,
        window: int = 64,
        memory_layers: list[int] | None = None,
        memory_chunk: int = 64,
        ltm_tokens: int = 2048,
        conv_kernel: int = 4,
        n_micro_steps: int = 2,
        max_cycles: int = 3,
        recursion_layers: int = 2,
        act_threshold: float = 0.95,
        act_weight: float = 0.1,
        gate_entropy_weight: float = 0.001,
        rope_theta: float = 10_000.0,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.d_model = d_model
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.d_ff = d_ff
        self.window = window
        self.memory_layers = list(range(n_layers)) if memory_layers is None else list(memory_layers)
        self.memory_chunk = memory_chunk
        self.ltm_tokens = ltm_tokens
        self.conv_kernel = conv_kernel
        self.n_micro_steps = n_micro_steps
        self.max_cycles = max_cycles
        self.recursion_layers = recursion_layers
        self.act_threshold = act_threshold
        self.act_weight = act_weight
        self.gate_entropy_weight = gate_entropy_weight
        self.rope_theta = rope_theta
        self.initializer_range = initializer_range
        super().__init__(
            tie_word_embeddings=tie_word_embeddings,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            **kwargs,
        )
        self._refuse_impossible_sizes()

    def _refuse_impossible_sizes(self) -> None:
        heads = max(1, self.n_heads)
        rules = [
            (self.vocab_size >= 1, "vocab_size", "at least 1"),
            (self.n_layers >= 1, "n_layers", "at least 1"),
            (self.n_heads >= 1, "n_heads", "at least 1"),
            (self.d_model >= 1 and self.d_model % (2 * heads) == 0, "d_model", "an even multiple of n_heads"),
            (self.d_ff >= 1, "d_ff", "at least 1"),
            (1 <= self.max_cycles <= CYCLES_LIMIT, "max_cycles", f"between 1 and {CYCLES_LIMIT}"),
            (self.n_micro_steps >= 1, "n_micro_steps", "at least 1"),
            (self.window >= 1, "window", "at least 1 token"),
            (self.memory_chunk >= 1, "memory_chunk", "at least 1 token"),
            (self.conv_kernel >= 1, "conv_kernel", "at least 1 token"),
            (self.ltm_tokens >= 2, "ltm_tokens", "at least 2 tokens"),
            (self.rope_theta > 0, "rope_theta", "above 0"),
            (0 < self.act_threshold < 1, "act_threshold", "between 0 and 1"),
            (self.recursion_layers >= 1, "recursion_layers", "at least 1"),
            (all(0 <= i < self.n_layers for i in self.memory_layers), "memory_layers", "indices of backbone blocks"),
        ]
        for holds, field, allowed in rules:
            if not holds:
                raise ValueError(f"CognateConfig.{field} = {getattr(self, field)!r}: must be {allowed}")

    @classmethod
    def full(cls, vocab_size: int = 50_257, **overrides) -> "CognateConfig":
        """The 25M model (within 10%) for GPT-2's vocabulary, 8 layers deep."""
        sizes = {"d_model": 256, "n_layers": 8, "n_heads": 4, "d_ff": 768, "window": 256}
        return cls(vocab_size=vocab_size, **{**sizes, **overrides})
