"""The linear modules that an adapter can attach to, by `model_type`. A test compares the table with transformers.

Heads (`lm_head`, classifiers) are left out: they are often tied to the embedding, and the training loop computes them
only on response positions. An architecture that is not listed here is checked when the model is loaded.
"""

_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_BERT = ("query", "key", "value", "dense")
_NEOX = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")

MODULES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "gemma",
            "gemma2",
            "gemma3_text",
            "cohere",
            "granite",
            "olmo2",
            "smollm3",
            "stablelm",
        ),
        _LLAMA,
    ),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta"), _BERT),
    **dict.fromkeys(("gpt_neox", "bloom"), _NEOX),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "gpt_neo": ("q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"),
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "phi": ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "starcoder2": ("q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"),
}

# Modules that get the rows of a batch and their positions as one axis: there, hooks on a layer cannot tell rows apart.
FLATTENED: dict[str, tuple[str, ...]] = {
    "opt": ("fc1", "fc2"),
    "qwen2_moe": ("gate_proj", "up_proj", "down_proj", "shared_expert_gate"),  # of the shared expert
}
