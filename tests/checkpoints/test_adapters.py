import pytest

from localrank_cli.checkpoints.adapters import adapter_key, is_adapter_alone

ALONE = {
    "PEFT": ["base_model.model.a.lora_A.weight", "base_model.model.a.lora_B.weight"],
    "PEFT, a head beside it": [
        "base_model.model.a.lora_A.weight",
        "base_model.model.a.lora_B.weight",
        "base_model.model.head.weight",
        "base_model.model.head.bias",
    ],
    "in memory": ["a.lora_A.default.weight", "a.lora_B.default.weight"],
    "embedding": ["a.lora_embedding_A", "a.lora_embedding_B"],
    "DoRA": ["a.lora_A.weight", "a.lora_B.weight", "a.lora_magnitude_vector"],
    "loralib": ["a.lora_A", "a.lora_B"],
    "torchtune": ["layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight"],
    "IA3": ["a.ia3_l"],
    "LoHa": ["a.hada_w1_a", "a.hada_w1_b", "a.hada_w2_a", "a.hada_w2_b", "a.hada_t1"],
    "LoKr": ["a.lokr_w1", "a.lokr_w2_a", "a.lokr_w2_b", "a.lokr_t2"],
    "prompts": ["prompt_embeddings"],
    "kohya": ["lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight", "lora_unet_a.alpha"],
    "diffusers": ["a.processor.to_q_lora.down.weight", "a.processor.to_q_lora.up.weight"],
    "Houlsby": ["a.adapter.down_proj.weight", "a.adapter.up_proj.weight"],
    "AdapterHub": ["a.adapters.task.down.0.weight", "a.adapters.task.up.weight"],
    "AdaptFormer": ["blocks.0.adaptmlp.down_proj.weight", "blocks.0.adaptmlp.up_proj.weight"],
    "bottleneck": ["a.attn_adapter.proj_down.weight", "a.adapter_1.up.weight"],
    "VeRA": ["a.vera_lambda_b", "a.vera_lambda_d"],
}
BESIDE = {
    "PEFT, the whole": [
        "a.base_layer.weight",
        "a.lora_A.default.weight",
        "a.lora_B.default.weight",
    ],
    "loralib, the whole": ["a.weight", "a.bias", "a.lora_A", "a.lora_B"],
    "other names": ["x.linear.weight", "y.weight", "z.weight", "x.lora.down", "x.lora.up"],
}
NONE = ["flora.weight", "explorer.weight", "prompt_encoder.a.weight", "a.alpha", "adapter.weight"]
NONE += ["down_proj.weight", "mlp.up_proj.weight", "adapter.0.weight", "adapter.update.weight"]
NONE += ["adaptive.down.weight", "down.adapter.weight"]


@pytest.mark.parametrize("name", ALONE)
def test_an_adapter_alone(name: str) -> None:
    assert is_adapter_alone(ALONE[name])
    assert adapter_key(ALONE[name]) == ALONE[name][0]


@pytest.mark.parametrize("name", BESIDE)
def test_an_adapter_beside_the_weights_that_it_changes(name: str) -> None:
    assert adapter_key(BESIDE[name])
    assert not is_adapter_alone(BESIDE[name])


@pytest.mark.parametrize("key", NONE)
def test_no_adapter(key: str) -> None:
    assert adapter_key([key]) == ""
    assert not is_adapter_alone([key])
