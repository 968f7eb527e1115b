"""The names of embeddings in common families are those of the library's own networks."""

from typing import Any

import pytest
import torch

from localrank_cli.options.embeddings import EMBEDDINGS, embedding_of

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_names_are_those_of_the_library(kind: str) -> None:
    made = transformers.CONFIG_MAPPING[kind]()
    for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
        if hasattr(made, name):
            setattr(made, name, 1)
    mappings = (
        transformers.MODEL_MAPPING, transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        transformers.MODEL_FOR_MASKED_LM_MAPPING,
        transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    )  # fmt: skip
    classes = [mapping[type(made)] for mapping in mappings if type(made) in mapping]
    assert len(classes) > 1
    for one in classes:
        with torch.device("meta"):
            model = one._from_config(made)
        module = model.get_submodule(embedding_of(kind, one.__name__))
        assert module is model.get_input_embeddings()
