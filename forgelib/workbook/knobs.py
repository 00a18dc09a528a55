"""The knobs of every notebook: one frozen, strict model each, with the laptop's defaults, units and ranges.

To add a knob: one line here, and the same name and default in the notebook's parameters cell; a test compares them.
How a notebook's values are read and refused is `workbook.params`.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from forgelib.data import STRATEGIES


class Parameters(BaseModel):
    """What every notebook takes. Subclasses name their notebook and add its knobs."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
    NOTEBOOK: ClassVar[str]

    profile: Literal["smoke", "laptop", "gpu6gb", "full"] = Field("laptop", description="size of everything")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="root of every random stream")
    data: Literal["auto", "real", "procedural"] = Field("auto", description="where rows come from")


class Environment(Parameters):
    """00_environment: what this machine can do."""

    NOTEBOOK = "00_environment"


class CognateData(Parameters):
    """10_cognate_data: sixteen datasets, the tokenizer, the packed pools of the three-stage curriculum."""

    NOTEBOOK = "10_cognate_data"

    rows_per_dataset: int = Field(1500, ge=20, le=1_000_000, description="training rows taken from each dataset")
    heldout_per_dataset: int = Field(
        100, ge=5, le=10_000, description="held-out rows of each dataset, never trained on"
    )
    vocab_size: int = Field(1024, ge=300, le=50_257, description="tokens; 50257 asks for GPT-2's own vocabulary")
    seq_len_foundation: int = Field(64, ge=16, le=8192, description="tokens per sequence in the first stage")
    seq_len_reasoning: int = Field(128, ge=16, le=8192, description="tokens per sequence in the second stage")
    seq_len_advanced: int = Field(256, ge=16, le=8192, description="tokens per sequence in the third stage")


class CognateTrain(Parameters):
    """11_cognate_train: the shared trunk, then one specialist."""

    NOTEBOOK = "11_cognate_train"

    specialist: Literal["reasoning", "memory", "speed"] = Field("reasoning", description="which of the three to train")
    trunk_steps: int = Field(400, ge=3, le=10_000_000, description="optimizer steps of the shared trunk")
    steps: int = Field(180, ge=2, le=10_000_000, description="optimizer steps of the specialist")
    tokens_per_step: int = Field(1024, ge=16, le=10_000_000, description="tokens in one optimizer step")
    muon_lr: float = Field(0.02, gt=0, le=1, description="learning rate of the hidden matrices, per step")
    adamw_lr: float = Field(0.003, gt=0, le=1, description="learning rate of embeddings, norms and biases, per step")
    specialist_rate: float = Field(0.3, gt=0, le=1, description="a specialist's learning rates over the trunk's")
    d_model: int = Field(128, ge=16, le=8192, description="width of the residual stream; a multiple of 2 n_heads")
    d_ff: int = Field(384, ge=16, le=65_536, description="inner width of the feed-forward nets")
    n_layers: int = Field(3, ge=1, le=128, description="backbone blocks")
    n_heads: int = Field(4, ge=1, le=128, description="heads of attention and of memory")
    window: int = Field(32, ge=4, le=8192, description="tokens that attention looks back; farther back is memory's")
    memory_every: int = Field(2, ge=1, le=128, description="every so many blocks one carries a long-term memory")
    memory_chunk: int = Field(32, ge=1, le=4096, description="tokens that the memory processes at once: speed only")
    n_micro_steps: int = Field(2, ge=1, le=16, description="refinements of the latent per cycle")
    recursion_layers: int = Field(1, ge=1, le=8, description="layers of the shared recursion net")
    accuracy_samples: int = Field(200, ge=10, le=100_000, description="held-out problems answered by generation")
    checkpoint_every_seconds: float = Field(30.0, gt=0, le=86_400, description="seconds between checkpoints at most")
    wandb_mode: Literal["offline", "online", "disabled"] = Field("offline", description="Weights & Biases mirror")
    on_gate_failure: Literal["raise", "record"] = Field("record", description="what a red gate does to the run")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "CognateTrain":
        if self.d_model % (2 * self.n_heads):
            raise ValueError(f"d_model = {self.d_model}: must be a multiple of 2 x n_heads = {2 * self.n_heads}")
        return self


class CognateDiversity(Parameters):
    """12_cognate_diversity: are the three specialists different enough to be parents?"""

    NOTEBOOK = "12_cognate_diversity"

    diversity_threshold: float = Field(0.3, ge=0, le=1, description="least spread, as a share of the mean")
    halting_samples: int = Field(80, ge=5, le=100_000, description="held-out texts for halting and memory use")
    accuracy_samples: int = Field(150, ge=10, le=100_000, description="held-out problems answered per specialist")
    latency_texts: int = Field(20, ge=3, le=1000, description="texts timed per specialist, interleaved")
    latency_tokens: int = Field(32, ge=2, le=4096, description="tokens timed per text, the last ones")
    on_gate_failure: Literal["raise", "record"] = Field("record", description="what a red gate does to the run")


class EvoMethods(Parameters):
    """20_evomerge_methods: six techniques and eight recipes, each beside its formula and measured."""

    NOTEBOOK = "20_evomerge_methods"

    search_rows: int = Field(
        18, ge=2, le=10_000, description="held-out rows of each dataset that recipes are scored on"
    )
    dials_of: Literal["reasoning", "memory", "speed"] = Field("memory", description="whose depth and threshold all use")
    on_gate_failure: Literal["raise", "record"] = Field("record", description="what a red gate does to the run")


class EvoEvolve(Parameters):
    """21_evomerge_evolve: generations of merged models, a champion, its score on data the search never saw."""

    NOTEBOOK = "21_evomerge_evolve"

    generations: int = Field(50, ge=1, le=10_000, description="generations at most")
    population: int = Field(8, ge=8, le=256, description="members of a generation")
    patience: int = Field(10, ge=1, le=10_000, description="generations without a gain of 0.001 before the search ends")
    budget_minutes: float = Field(120.0, gt=0, le=100_000, description="minutes of measuring before the search ends")
    search_rows: int = Field(40, ge=2, le=10_000, description="held-out rows of each dataset that the search goes by")
    race_rows: int = Field(6, ge=0, le=10_000, description="further ones that every child is read on first; 0: no race")
    winners: int = Field(2, ge=1, le=256, description="children of a generation that win the race and are measured")
    champion_rows: int = Field(250, ge=5, le=100_000, description="unseen rows of each dataset that score the champion")
    workers: int = Field(0, ge=0, le=1024, description="processes that measure children; 0 takes one a core")
    backend: Literal["local", "ray"] = Field("local", description="where these processes run; ray joins a cluster")
    controls: Literal["all", "untrained"] = Field("all", description="all also trains four models and runs CMA-ES")
    fitness_threshold: float = Field(1.2, ge=0, le=10, description="champion's fitness needed; the parents' mean is 1")
    wandb_mode: Literal["offline", "online", "disabled"] = Field("offline", description="Weights & Biases mirror")
    on_gate_failure: Literal["raise", "record"] = Field("record", description="what a red gate does to the run")


class QuietBake(Parameters):
    """30_quietstar_bake: thinking vocabulary, reasoning rows, and traces baked into the champion."""

    NOTEBOOK = "30_quietstar_bake"

    vocabulary: Literal["forge-12", "forge-8", "startofthought"] = Field("forge-12", description="thinking tokens")
    reasoning_file: str = Field("", description='JSON lines of reasoning rows; "" makes procedural ones')
    rows: int = Field(6000, ge=20, le=1_000_000, description="reasoning rows trained on, over all strategies")
    difficulty: int = Field(1, ge=1, le=3, description="hardest problems of the procedural rows")
    headroom_rows: int = Field(120, ge=0, le=1_000_000, description="further rows, one difficulty harder, for Step 2")
    watch_rows: int = Field(200, ge=10, le=100_000, description="validation rows that decide when training ends")
    gate_rows: int = Field(400, ge=10, le=100_000, description="further validation rows that the gate is measured on")
    epochs: int = Field(3, ge=1, le=10_000, description="times every row is seen, at most")
    batch_size: int = Field(8, ge=1, le=4096, description="rows in one optimizer step")
    muon_lr: float = Field(0.006, gt=0, le=1, description="learning rate of the hidden matrices, per step")
    adamw_lr: float = Field(0.003, gt=0, le=1, description="learning rate of embeddings, norms and biases, per step")
    direct_share: float = Field(0.12, ge=0, lt=1, description="share of rows trained without their thought")
    max_new_tokens: int = Field(96, ge=4, le=4096, description="tokens of thought and answer, at most")
    overall_threshold: float = Field(0.85, ge=0, le=1, description="share of right answers the gate asks for")
    strategy_threshold: float = Field(0.765, ge=0, le=1, description="the same in each strategy")
    checkpoint_every_seconds: float = Field(30.0, gt=0, le=86_400, description="seconds between checkpoints at most")
    wandb_mode: Literal["offline", "online", "disabled"] = Field("offline", description="Weights & Biases mirror")
    on_gate_failure: Literal["raise", "record"] = Field("record", description="what a red gate does to the run")

    @model_validator(mode="after")
    def _there_is_something_harder(self) -> "QuietBake":
        if self.headroom_rows and self.difficulty == 3 and not self.reasoning_file:
            raise ValueError("headroom_rows: nothing is harder than difficulty = 3; set headroom_rows = 0")
        return self


class QuietRL(Parameters):
    """31_quietstar_rl: REINFORCE over thoughts sampled in parallel, from the baked model."""

    NOTEBOOK = "31_quietstar_rl"

    vocabulary: Literal["forge-12", "forge-8", "startofthought"] = Field("forge-12", description="thinking tokens")
    strategies: str = Field("chain_of_thought", description="strategies of the problems, joined by commas")
    difficulty: int = Field(2, ge=1, le=3, description="difficulty of the problems; harder than what was baked")
    train_rows: int = Field(2000, ge=10, le=1_000_000, description="problems trained on")
    check_rows: int = Field(100, ge=10, le=100_000, description="held-out problems of the checks on the way")
    gate_rows: int = Field(300, ge=10, le=100_000, description="further held-out problems that the gate is measured on")
    episodes: int = Field(1600, ge=1, le=10_000_000, description="problems shown, each with n_thoughts thoughts")
    batch_size: int = Field(16, ge=1, le=4096, description="episodes in one optimizer step")
    n_thoughts: int = Field(6, ge=2, le=64, description="thoughts sampled of each problem")
    thought_tokens: int = Field(48, ge=4, le=4096, description="tokens of a thought at most, its outer ones counted")
    answer_tokens: int = Field(4, ge=1, le=1024, description="tokens of an answer at most")
    temperature: float = Field(1.0, gt=0, le=10, description="temperature that thoughts are sampled at")
    top_p: float = Field(0.9, gt=0, le=1, description="nucleus that thoughts are sampled from")
    reward: Literal["likelihood", "binary"] = Field("likelihood", description="what a thought earns")
    kl_coefficient: float = Field(0.1, ge=0, le=1000, description="weight of the KL to the baked model")
    entropy_coefficient: float = Field(
        2.0, ge=0, le=1000, description="weight of the entropy of thoughts where none of a problem is right"
    )
    muon_lr: float = Field(0.004, gt=0, le=1, description="learning rate of the hidden matrices where all teaches")
    adamw_lr: float = Field(0.002, gt=0, le=1, description="that of embeddings, norms and biases")
    rows_at_once: int = Field(32, ge=1, le=100_000, description="thoughts read in one forward pass: memory only")
    check_every: int = Field(480, ge=1, le=10_000_000, description="episodes between two anti-theater checks")
    dataset_samples: int = Field(10, ge=0, le=100_000, description="rows of GSM8K and ARC answered at each check")
    jumpstart_episodes: int = Field(96, ge=0, le=10_000_000, description="episodes of the control without baking")
    supervised_lr: float = Field(0.003, gt=0, le=1, description="learning rate of the control trained on true traces")
    gain_threshold: float = Field(0.03, ge=-1, le=1, description="least gain in accuracy over the champion, a share")
    latency_threshold: float = Field(200.0, gt=0, le=1e6, description="milliseconds to an answer with its thought")
    checkpoint_every_seconds: float = Field(30.0, gt=0, le=86_400, description="seconds between checkpoints at most")
    wandb_mode: Literal["offline", "online", "disabled"] = Field("offline", description="Weights & Biases mirror")
    on_gate_failure: Literal["raise", "record"] = Field("record", description="what a red gate does to the run")

    @model_validator(mode="after")
    def _strategies_are_known(self) -> "QuietRL":
        _known(self.strategies)
        return self


class QuietTheater(Parameters):
    """32_quietstar_antitheater: are the thoughts real? Four tests, each beside controls that only look like it."""

    NOTEBOOK = "32_quietstar_antitheater"

    vocabulary: Literal["forge-12", "forge-8", "startofthought"] = Field("forge-12", description="thinking tokens")
    strategies: str = Field("chain_of_thought", description="strategies of the problems, joined by commas")
    difficulty: int = Field(2, ge=1, le=3, description="difficulty of the problems")
    problems: int = Field(1000, ge=20, le=1_000_000, description="held-out problems of the ablation")
    thought_problems: int = Field(1000, ge=10, le=1_000_000, description="those of them with several thoughts each")
    samples: int = Field(100, ge=4, le=100_000, description="those of them whose divergence is measured")
    thoughts: int = Field(6, ge=2, le=64, description="thoughts sampled of a problem with several")
    temperature: float = Field(1.0, gt=0, le=10, description="temperature that they are sampled at")
    thought_tokens: int = Field(48, ge=4, le=4096, description="tokens of a thought at most, its outer ones counted")
    answer_tokens: int = Field(4, ge=1, le=1024, description="tokens of an answer at most")
    divergence_threshold: float = Field(0.30, ge=0, le=1, description="normalised edit distance needed")
    ablation_threshold: float = Field(0.02, ge=-1, le=1, description="gain in accuracy needed, a share")
    correlation_threshold: float = Field(0.50, ge=-1, le=1, description="Pearson's r needed, coherence against utility")
    causal_threshold: float = Field(0.30, ge=0, le=1, description="total variation needed, own against swapped thought")
    wandb_mode: Literal["offline", "online", "disabled"] = Field("offline", description="Weights & Biases mirror")
    on_gate_failure: Literal["raise", "record"] = Field("record", description="what a red gate does to the run")

    @model_validator(mode="after")
    def _sizes_and_strategies_fit(self) -> "QuietTheater":
        _known(self.strategies)
        if not self.samples <= self.thought_problems <= self.problems:
            raise ValueError(
                f"must be samples <= thought_problems <= problems: got {self.samples}, {self.thought_problems}, "
                f"{self.problems}"
            )
        return self


class QuietABTest(Parameters):
    """33_quietstar_abtest: thoughts against none over several rounds, and a bake of the traces that helped."""

    NOTEBOOK = "33_quietstar_abtest"

    vocabulary: Literal["forge-12", "forge-8", "startofthought"] = Field("forge-12", description="thinking tokens")
    dataset: str = Field("", description='gsm8k, svamp or another dataset; "" makes procedural problems')
    difficulty: int = Field(1, ge=1, le=3, description="hardest problems of the procedural rows")
    samples: int = Field(100, ge=2, le=100_000, description="problems of a round")
    rounds: int = Field(3, ge=3, le=100, description="rounds, each with its own problems and thoughts")
    thoughts: int = Field(4, ge=2, le=64, description="thoughts sampled of each problem; the first one answers")
    max_thought_tokens: int = Field(96, ge=2, le=4096, description="tokens of a thought, at most")
    max_answer_tokens: int = Field(8, ge=1, le=4096, description="tokens of an answer, at most")
    improvement: float = Field(0.02, ge=0, lt=1, description="share that the effect must exceed for a winner")
    collect: int = Field(150, ge=6, le=1_000_000, description="training problems that traces are collected on")
    bake_helped: int = Field(3, ge=1, le=10_000, description="times every trace that helped is baked")
    batch_size: int = Field(8, ge=1, le=4096, description="traces in one optimizer step")
    muon_lr: float = Field(0.0001, gt=0, le=1, description="learning rate of the hidden matrices, per step")
    adamw_lr: float = Field(0.00005, gt=0, le=1, description="learning rate of embeddings, norms and biases, per step")
    direct_share: float = Field(0.5, ge=0, lt=1, description="share of traces trained without their thought")
    checkpoint_every_seconds: float = Field(30.0, gt=0, le=86_400, description="seconds between checkpoints at most")
    wandb_mode: Literal["offline", "online", "disabled"] = Field("offline", description="Weights & Biases mirror")
    on_gate_failure: Literal["raise", "record"] = Field("record", description="what a red gate does to the run")

    @model_validator(mode="after")
    def _every_round_collects(self) -> "QuietABTest":
        if self.collect < 2 * self.rounds:
            raise ValueError(f"collect = {self.collect}: must be at least 2 x rounds = {2 * self.rounds}")
        return self


class BitnetQuantize(Parameters):
    """40_bitnet_quantize: calibration on real activations, and one layer after the other made ternary."""

    NOTEBOOK = "40_bitnet_quantize"

    vocabulary: Literal["forge-12", "forge-8", "startofthought"] = Field("forge-12", description="thinking tokens")
    per_row: bool = Field(False, description="a scale for each output instead of one for the layer")
    threshold: float = Field(0.0, ge=0, lt=10, description="share of mean |w| below which a weight is 0; 0: absmean")
    put_back: float = Field(0.5, gt=0, le=1000, description="nats a token that a layer may cost before it is put back")
    calibration_rows: int = Field(8, ge=1, le=100_000, description="rows whose activations are measured on")
    gate_rows: int = Field(200, ge=10, le=100_000, description="held-out rows of the baked strategies")
    harder_rows: int = Field(100, ge=10, le=100_000, description="held-out problems of the reinforcement")
    sparsity_threshold: float = Field(0.30, ge=0, le=1, description="share of zeros needed in the ternary layers")
    wandb_mode: Literal["offline", "online", "disabled"] = Field("offline", description="Weights & Biases mirror")
    on_gate_failure: Literal["raise", "record"] = Field("record", description="what a red gate does to the run")


class BitnetFinetune(Parameters):
    """41_bitnet_finetune: straight-through fine-tuning where rounding cost too much, beside full precision."""

    NOTEBOOK = "41_bitnet_finetune"

    vocabulary: Literal["forge-12", "forge-8", "startofthought"] = Field("forge-12", description="thinking tokens")
    gate_rows: int = Field(200, ge=10, le=100_000, description="held-out rows of the baked strategies")
    harder_rows: int = Field(100, ge=10, le=100_000, description="held-out problems of the reinforcement")
    tune_rows: int = Field(3000, ge=1, le=10_000_000, description="rows trained on, of what the parent was made from")
    epochs: int = Field(2, ge=1, le=10_000, description="times every row is seen")
    batch_size: int = Field(8, ge=1, le=4096, description="rows in one optimizer step")
    muon_lr: float = Field(0.004, gt=0, le=1, description="learning rate of the hidden matrices, per step")
    adamw_lr: float = Field(0.002, gt=0, le=1, description="learning rate of embeddings, norms and biases, per step")
    grokfast_lambda: float = Field(0.0, ge=0, le=100, description="how much of the gradient's slow part is added")
    rounding_warmup: float = Field(0.2, ge=0, le=1, description="share of the steps over which rounding is blended in")
    distillation: float = Field(0.0, ge=0, le=1000, description="weight of the KL to the full-precision parent")
    direct_share: float = Field(0.12, ge=0, lt=1, description="share of rows trained without their thought")
    control: bool = Field(True, description="train the parent in full precision for as many steps, to compare with")
    finetune_above: float = Field(
        0.05, ge=-1, le=1, description="drop in quality that calls for it, a share; -1: always"
    )
    quality_threshold: float = Field(0.94, ge=0, le=1, description="share of the quality that must be kept")
    sparsity_threshold: float = Field(0.30, ge=0, le=1, description="share of zeros needed in the ternary layers")
    compression_threshold: float = Field(6.0, ge=1, le=32, description="times smaller needed on disk, ternary layers")
    checkpoint_every_seconds: float = Field(30.0, gt=0, le=86_400, description="seconds between checkpoints at most")
    wandb_mode: Literal["offline", "online", "disabled"] = Field("offline", description="Weights & Biases mirror")
    on_gate_failure: Literal["raise", "record"] = Field("record", description="what a red gate does to the run")


class BitnetBenchmark(Parameters):
    """42_bitnet_benchmark: bytes, speed and quality of the packed model, its exports, its thoughts on trial."""

    NOTEBOOK = "42_bitnet_benchmark"

    vocabulary: Literal["forge-12", "forge-8", "startofthought"] = Field("forge-12", description="thinking tokens")
    gate_rows: int = Field(200, ge=10, le=100_000, description="held-out rows of the baked strategies")
    harder_rows: int = Field(100, ge=10, le=100_000, description="held-out problems of the reinforcement")
    decode_tokens: int = Field(64, ge=1, le=100_000, description="tokens that each way of decoding writes in a turn")
    repeats: int = Field(5, ge=1, le=1000, description="turns of each way of decoding; figures are their medians")
    trial_problems: int = Field(1000, ge=20, le=1_000_000, description="held-out problems of the ablation")
    trial_thought_problems: int = Field(1000, ge=10, le=1_000_000, description="those of them with several thoughts")
    trial_samples: int = Field(100, ge=4, le=100_000, description="those of them whose divergence is measured")
    trial_thoughts: int = Field(6, ge=2, le=64, description="thoughts sampled of a problem with several")
    speed_threshold: float = Field(2.0, gt=0, le=1000, description="times as fast as float32 needed; the aim is 3.8")
    compression_threshold: float = Field(6.0, ge=1, le=32, description="times smaller needed on disk, ternary layers")
    quality_threshold: float = Field(0.94, ge=0, le=1, description="share of the quality that must be kept")
    sparsity_threshold: float = Field(0.30, ge=0, le=1, description="share of zeros needed in the ternary layers")
    wandb_mode: Literal["offline", "online", "disabled"] = Field("offline", description="Weights & Biases mirror")
    on_gate_failure: Literal["raise", "record"] = Field("record", description="what a red gate does to the run")

    @model_validator(mode="after")
    def _sizes_of_the_trial_fit(self) -> "BitnetBenchmark":
        if not self.trial_samples <= self.trial_thought_problems <= self.trial_problems:
            raise ValueError(
                f"must be trial_samples <= trial_thought_problems <= trial_problems: got {self.trial_samples}, "
                f"{self.trial_thought_problems}, {self.trial_problems}"
            )
        return self


def _known(strategies: str) -> None:
    names = strategies.split(",")
    if unknown := [name for name in names if name not in STRATEGIES]:
        raise ValueError(
            f"strategies: there is no {unknown[0]!r}; join by commas, without blanks, any of {', '.join(STRATEGIES)}"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"strategies: {twice[0]!r} stands there twice, and each of its problems would count twice")


MODELS: dict[str, type[Parameters]] = {
    model.NOTEBOOK: model
    for model in (
        *(Environment, CognateData, CognateTrain, CognateDiversity, EvoMethods, EvoEvolve),
        *(QuietBake, QuietRL, QuietTheater, QuietABTest),
        *(BitnetQuantize, BitnetFinetune, BitnetBenchmark),
    )
}
