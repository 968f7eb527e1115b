"""Names of the embeddings of tokens in common families of transformers, without the library.

For other families the network is built to find out, which takes seconds.
"""

_TRANSFORMER, _MODEL = "transformer", "model"
_WORDS = "embeddings.word_embeddings"
# Model type -> (the attribute that holds the base model, the embedding in it).
EMBEDDINGS = {
    **dict.fromkeys(
        ("gpt2", "gpt_neo", "gptj", "gpt_bigcode", "codegen", "mpt"), (_TRANSFORMER, "wte")
    ),
    **dict.fromkeys(("bloom", "falcon"), (_TRANSFORMER, "word_embeddings")),
    **dict.fromkeys(
        (
            "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma",
            "gemma2", "gemma3_text", "phi", "phi3", "olmo", "olmo2", "olmo3", "olmoe", "stablelm",
            "starcoder2", "cohere", "granite", "smollm3", "gpt_oss",
        ),
        (_MODEL, "embed_tokens"),
    ),
    **dict.fromkeys(("mamba", "mamba2"), ("backbone", "embeddings")),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), ("roberta", _WORDS)),
    **{kind: (kind, _WORDS) for kind in ("bert", "distilbert", "electra", "albert")},
    "gpt_neox": ("gpt_neox", "embed_in"),
    "opt": (_MODEL, "decoder.embed_tokens"),
}  # fmt: skip


def embedding_of(model_type: str, architecture: str) -> str:
    """Return the name of a network's embedding of tokens; empty if the family is not listed."""
    if model_type not in EMBEDDINGS:
        return ""
    base, inner = EMBEDDINGS[model_type]
    is_base = architecture.endswith("Model") and not architecture.endswith(
        ("HeadModel", "HeadsModel")
    )
    return inner if is_base else f"{base}.{inner}"
