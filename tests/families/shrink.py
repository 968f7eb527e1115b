"""Small configs of transformers: the sizes of a config class, by the names of its entries."""

import re
from collections.abc import Mapping
from typing import Any

WIDTH, HEADS, LAYERS, VOCAB, IMAGE = 16, 2, 2, 32, 16

# The first pattern that matches a whole name gives the largest size; None leaves it as it is.
_SIZES: tuple[tuple[str, int | None], ...] = (
    (r".*vocab_size.*", VOCAB),
    (r"(pad|bos|eos|sep|cls|decoder_start|unk)_token_id", 1),
    (r".*token_(id|index)", 3),
    (r"chunk_size_feed_forward|num_channels|num_feat_extract_layers|seed|max_window_layers", None),
    (r".*(kernel|stride|dilation|_type|_ids?$|_every_|_interval|_step$|_period|upscale).*", None),
    (r".*(merge|pool)_?size|temporal_patch_size|audio_channels|num_labels|.*in_channels", None),
    (r"qk_rope_head_dim|qk_nope_head_dim", 4),
    (r"rotary_dim|.*lora_rank|.*_rank|index_head_dim", 8),
    (r"index_topk|.*sliding_window|attention_window(_size)?|window_size|attention_chunk_size", 4),
    (r"(.*_)?head_dim|qk_head_dim|v_head_dim|d_kv|.*headdim|.*d_head|attention_head_size", 8),
    (r"n_group|topk_group|n_shared_experts|num_nextn_predict_layers|.*n_groups|.*ngroups", 1),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"num_experts_per_tok|moe_topk|moe_top_?k|.*top_?k(_experts)?|num_selected_experts|moe_k", 2),
    (r"(num|n)_(routed_|local_)?experts|moe_num_experts|n_dense_first|max_position_step", 4),
    (r".*(intermediate|feed_forward)_size|.*ffn_dim|d_ff|.*ffn_hidden_size|mlp_dim|d_inner", 24),
    (r"n_inner|dim_feedforward|.*ffn_hidden_dim|.*ff_size|dff|dim_ff", 24),
    (r".*num_key_value_heads|num_query_groups|num_kv_heads|n_kv_heads", HEADS),
    (r"(.*_)?(num_)?(attention_)?heads?|n_heads?|.*attention_heads", HEADS),
    (r"(.*_)?(num_)?(hidden_|encoder_|decoder_|n_)?layers?|depth|.*_depth|n_blocks|num_blocks",
     LAYERS),
    (r"num_stages", LAYERS),
    (r"image_size|img_size", IMAGE),
    (r"patch_size", IMAGE // 2),
    (r".*state_size|.*d_state|ssm_state_size", 4),
    (r".*n_positions|.*max_position_embeddings|.*max_(source|target)_positions|max_seq_len", 32),
    (r"n_ctx|seq_length|max_sequence_length|max_text_positions|context_length", 32),
    (r"num_mel_bins|n_mels|input_feat_per_channel", 16),
    (r"(.*_)?(hidden_size|d_model|n_embd|embed_dim|embedding_size|emb_dim|dim|width)", WIDTH),
    (r".*_(size|dim|units|channels|features|width)", WIDTH),
)  # fmt: skip


def small_config(config_class: Any, hints: Mapping[str, Any]) -> Any:
    """Return a config of a class with small sizes; `hints` decide what no rule can know."""
    return config_class(**_small_entries(config_class()) | dict(hints))


def _small_entries(config: Any) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, value in vars(config).items():
        if name.startswith("_"):
            continue
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            entries[name] = type(value)(**_small_entries(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            size = _size(name)
            if size is not None and value > size:
                entries[name] = size
    kv_heads, heads = (
        vars(config).get(name) for name in ("num_key_value_heads", "num_attention_heads")
    )
    if isinstance(kv_heads, int) and isinstance(heads, int) and kv_heads < heads:
        entries["num_key_value_heads"] = 1  # shared among heads, where the defaults share them
    if "qk_rope_head_dim" in entries:  # where rotary tables take their width from
        entries["head_dim"] = entries["qk_rope_head_dim"]
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and "mrope_section" in rope:
        entries["rope_parameters"] = rope | {"mrope_section": [2, 1, 1]}
    return entries


def _size(name: str) -> int | None:
    return next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), None)
