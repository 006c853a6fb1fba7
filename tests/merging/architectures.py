"""Small random models of the architectures that are supported, as checkpoints on disk."""

from pathlib import Path

import torch

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHARED_HEADS = {**SIZES, "num_key_value_heads": 2}
LOCAL = {**SHARED_HEADS, "head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8}
ROUTED = {**SHARED_HEADS, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ARCHITECTURES = {
    "llama": ("LlamaConfig", SHARED_HEADS),
    "qwen2": ("Qwen2Config", {**SHARED_HEADS, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**SHARED_HEADS, "head_dim": 8}),
    "mistral": ("MistralConfig", {**SHARED_HEADS, "sliding_window": 7}),
    "gemma2": ("Gemma2Config", LOCAL),
    "gemma3": ("Gemma3TextConfig", {**LOCAL, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "phi3": ("Phi3Config", SHARED_HEADS),
    "pythia": ("GPTNeoXConfig", {**SIZES, "use_parallel_residual": True}),
    "gpt_neox_sequential": ("GPTNeoXConfig", {**SIZES, "use_parallel_residual": False}),
    "olmo": ("OlmoConfig", SHARED_HEADS),
    "olmo2": ("Olmo2Config", SHARED_HEADS),
    "granite": ("GraniteConfig", {**SHARED_HEADS, "embedding_multiplier": 3.0}),
    "mixtral": ("MixtralConfig", {**SHARED_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3MoeConfig", {**ROUTED, "head_dim": 8, "mlp_only_layers": [1]}),
}
ARCHITECTURES["gemma3"][1]["num_hidden_layers"] = 4


def make_model(name: str, folder: Path, dtype: torch.dtype = torch.float32, **changes) -> Path:
    """Write a random model of an architecture, its settings changed by `changes`; every parameter is drawn."""
    import transformers

    kind, settings = ARCHITECTURES[name]
    config = getattr(transformers, kind)(**{**settings, **changes})
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder
