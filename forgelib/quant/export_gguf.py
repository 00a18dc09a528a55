"""A packed Llama model as one GGUF file with ternary blocks, for llama.cpp and all that reads its files.

TQ2_0 stores 256 weights of a row in 66 bytes (2 bits each and a float16 scale), TQ1_0 in 54 (base 3). The signs are
ours exactly; the scale is rounded to float16: by at most 1 part in 2,048 from 6.1e-5 to 65,504, and a layer that it
changes by more than 1 part in 1,000 is refused. Embeddings, head and kept layers are float16, or float32 where that
does not hold them; norms float32. Llama's queries and keys are stored with their rows in llama.cpp's rotary order.

llama.cpp rounds activations to int8 in blocks of 256, we do it a token: its outputs are near ours, not equal (a test
asks llama.cpp itself). What transformers reads from the file (`gguf_file=`) it multiplies in float32.
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType
from torch import Tensor, nn

from .convert import fits_float16
from .export_bitnet import ExportRefused, packed_layers, refuse_shared, ternary_layers
from .folder import rest_of
from .gguf_tokenizer import TokenizerFields, tokenizer_fields
from .linear import PackedTernaryLinear, TernaryLinear
from .ternary import ternarize

#: What a ternary weight can be stored as: the type of its tensor, and what the file says of itself.
KINDS = {
    "TQ2_0": (GGMLQuantizationType.TQ2_0, LlamaFileType.MOSTLY_TQ2_0),
    "TQ1_0": (GGMLQuantizationType.TQ1_0, LlamaFileType.MOSTLY_TQ1_0),
}
BLOCK = 256


def save_gguf(model: nn.Module, file: Path | str, tokenizer=None, kind: str = "TQ2_0") -> str:
    """Write a model that `pack_model` made into one GGUF file.

    Returns "" where the tokenizer lies in the file, else why it does not.
    Raises ExportRefused for an architecture other than Llama, an activation other than SiLU, attention that is not
    causal over the whole text, rotary positions that are scaled, biases, weights used in several places, a ternary
    layer whose inputs are no multiple of 256 or whose scales float16 does not hold; ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r}: must be {' or '.join(KINDS)}")
    layers = packed_layers(model)
    check_gguf(model)
    tensors = _tensors(model, layers, KINDS[kind][0])
    fields, why_not = None, "no tokenizer was given"
    if tokenizer is not None:
        fields, why_not = tokenizer_fields(tokenizer, model.config.vocab_size)
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(file, "llama")
    try:
        _describe(writer, model.config, KINDS[kind][1])
        _add_tokenizer(writer, fields)
        for name, (array, raw) in tensors.items():
            writer.add_tensor(name, array, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return why_not


def check_gguf(model: nn.Module) -> None:
    """Raise ExportRefused where `save_gguf` would, for a packed model or one that is only converted yet."""
    config = model.config
    if config.model_type != "llama":
        raise ExportRefused(
            f"gguf: the architecture {config.model_type!r} is not written here: only Llama, whose names and rotary "
            "order llama.cpp knows; use the packed folder"
        )
    _refuse_another_graph(config)
    refuse_shared(model, "gguf", ["lm_head.weight"])
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope != "default":
        raise ExportRefused(f"gguf: rotary positions of type {rope!r} need tensors that are not written here")
    for name in model.state_dict():
        if name.endswith(".bias"):
            raise ExportRefused(f"gguf: {name}: biases of Llama are not written here; use the packed folder")
    for name, layer in ternary_layers(model).items():
        if layer.in_features % BLOCK:
            raise ExportRefused(
                f"gguf: {name} has {layer.in_features} inputs: TQ1_0 and TQ2_0 store blocks of {BLOCK}, so {BLOCK} "
                "must divide them; use the packed folder or bitnet"
            )
        weight = _weight(layer)
        if not fits_float16(weight):
            raise ExportRefused(
                f"gguf: {name}: GGUF keeps scales in float16, which does not hold those of this layer, up to "
                f"{weight.abs().max():.5g} (it ends at 65504, and below 6.1e-5 it loses digits); use the packed folder "
                "or bitnet"
            )


def _refuse_another_graph(config) -> None:
    """Refuse what transformers' Llama would compute by its config, and a GGUF file has no field for."""
    if config.hidden_act not in ("silu", "swish"):
        raise ExportRefused(
            f"gguf: its feed-forward uses {config.hidden_act}: llama.cpp's Llama always computes SiLU, so the file "
            "would be another model; use the packed folder or bitnet"
        )
    if not getattr(config, "is_causal", True):
        raise ExportRefused("gguf: its tokens see later ones (is_causal is false), llama.cpp's never; use bitnet")
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if windows:
        raise ExportRefused(
            f"gguf: layers of type {', '.join(sorted(windows))}: llama.cpp's Llama attends to the whole text"
        )


def _weight(layer: TernaryLinear | PackedTernaryLinear) -> Tensor:
    """The weight [N, K] in float32, as it is or will be packed."""
    if isinstance(layer, PackedTernaryLinear):
        return layer.weight
    signs, scales = ternarize(layer.weight, layer.rounding)
    return signs * scales[:, None]


def _tensors(
    model: nn.Module, layers: dict[str, PackedTernaryLinear], type_: GGMLQuantizationType
) -> dict[str, tuple[np.ndarray, GGMLQuantizationType | None]]:
    """Every tensor by its name in GGUF: the bytes, and the type where the array does not tell."""
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)

    def renamed(name: str) -> str:
        found = names.get_name(name, try_suffixes=(".weight",))
        if found is None:
            raise ExportRefused(f"gguf: llama.cpp's Llama has no tensor {name}")
        return found

    found = {}
    for name, tensor in rest_of(model)[0].items():
        ordered = _rotary_order(name, tensor, config)
        exact = ordered if tensor.dtype == torch.float16 and tensor.dim() > 1 else ordered.float()
        found[renamed(name)] = (exact.contiguous().numpy(), None)
    for name, layer in layers.items():
        weight = _rotary_order(f"{name}.weight", layer.weight, config).contiguous().numpy()
        found[renamed(f"{name}.weight")] = (gguf.quants.quantize(weight, type_), type_)
    return found


def _rotary_order(name: str, weight: Tensor, config) -> Tensor:
    """Rows of queries and keys [H d, K] as llama.cpp rotates them: the two halves of a head interleaved."""
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    count = heads.get(".".join(name.split(".")[-2:]))
    if count is None:
        return weight
    halves = weight.reshape(count, 2, weight.shape[0] // count // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _describe(writer: gguf.GGUFWriter, config, file_type: LlamaFileType) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10_000.0)
    writer.add_name("forge-ternary")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(theta))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_tokenizer(writer: gguf.GGUFWriter, fields: TokenizerFields | None) -> None:
    if fields is None:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(fields.pre)
    writer.add_token_list(fields.tokens)
    writer.add_token_types(fields.types)
    writer.add_token_merges(fields.merges)
    for add, token in (
        (writer.add_bos_token_id, fields.bos),
        (writer.add_eos_token_id, fields.eos),
        (writer.add_unk_token_id, fields.unk),
        (writer.add_pad_token_id, fields.pad),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(fields.add_bos)
