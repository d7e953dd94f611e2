"""Facts of models whose configs say them by other names, in another place, or not at all."""

import pytest
import torch
import transformers as T
from torch import nn

from qkit import RTN, quantize
from qkit.model.facts import (
    CONTEXT_NAMES,
    check_ids,
    chunk_length,
    context_length,
    device_of,
    output_embedding,
    read,
    text_config,
    text_decoder,
    vocabulary_size,
)
from tiny import llava, t5, vit


def test_a_chunk_fits_the_context_behind_its_bos(model):
    assert chunk_length(model) == 63


@pytest.mark.parametrize(("context", "length"), [(511, 510), (512, 511), (513, 511), (4096, 511)])
def test_a_chunk_is_never_longer_than_511(llama, context, length):
    llama.config.max_position_embeddings = context
    assert chunk_length(llama) == length


def test_a_model_that_does_not_say_its_context_gets_511():
    assert chunk_length(nn.Linear(1, 1)) == 511


def with_config(**entries):
    model = nn.Module()
    model.config = type("Config", (), entries)
    return model


@pytest.mark.parametrize("name", CONTEXT_NAMES)
def test_the_context_is_found_by_each_of_its_names(name):
    assert context_length(with_config(**{name: 40})) == 40 and chunk_length(with_config(**{name: 40})) == 39


@pytest.mark.parametrize("said", [None, -1, 0, "many"])
def test_what_is_no_length_is_no_limit(said):
    assert context_length(with_config(max_position_embeddings=said)) is None


@pytest.mark.parametrize(
    ("make", "context"),
    [
        (lambda: T.MptConfig(d_model=48, n_layers=1, n_heads=4, max_seq_len=40), 40),
        (lambda: T.GPTJConfig(n_positions=50, n_embd=48, n_layer=1, n_head=4), 50),
        (lambda: T.BloomConfig(hidden_size=48, n_layer=1, n_head=4), None),
        (lambda: T.WhisperConfig(max_target_positions=30), 30),
        (lambda: T.XLNetConfig(d_model=48, n_layer=1, n_head=4), None),
    ],
)
def test_contexts_of_configs(make, context):
    model = nn.Module()
    model.config = make()
    assert context_length(model) == context


def test_of_a_model_that_sees_the_text_part_is_asked(ids):
    model = llava()
    assert not hasattr(model.config, "max_position_embeddings") and not hasattr(model.config, "vocab_size")
    assert text_config(model) is model.config.text_config
    assert context_length(model) == 64 and vocabulary_size(model) == 97
    assert text_decoder(model) == ("model.language_model", model.model.language_model)
    assert read(model, ids).logits.shape == (2, 20, 97)


def test_two_configs_of_text_give_that_of_the_decoder():
    config = T.MusicgenConfig(
        text_encoder={"model_type": "t5"}, audio_encoder={"model_type": "encodec"}, decoder={"vocab_size": 60}
    )
    model = nn.Module()
    model.config = config
    assert text_config(model).vocab_size == 60


def test_the_decoder_of_a_plain_model_is_found_and_of_a_plain_module_is_itself(llama):
    assert text_decoder(llama) == ("model", llama.model)
    assert text_decoder(t5())[0] == "decoder"
    layer = nn.Linear(1, 1)
    assert text_decoder(layer) == ("", layer)


def test_the_vocabulary_is_that_of_the_embedding_not_what_an_old_config_says(llama):
    llama.config.vocab_size = 5
    assert vocabulary_size(llama) == 97
    assert vocabulary_size(vit()) is None and vocabulary_size(nn.Linear(1, 1)) is None
    assert vocabulary_size(with_config(vocab_size=7)) == 7


@pytest.mark.parametrize("bad", [97, 5000, -1])
def test_ids_beyond_the_vocabulary_are_refused(llama, ids, bad):
    check_ids(llama, ids)
    ids[1, 3] = bad
    with pytest.raises(ValueError, match=rf"token id {bad} is not in the vocabulary of LlamaForCausalLM, 0 to 96"):
        check_ids(llama, ids)


def test_the_output_embedding_is_what_the_model_says(llama):
    assert output_embedding(llama) is llama.lm_head
    assert output_embedding(vit()) is None and output_embedding(nn.Linear(1, 1)) is None


def test_a_model_without_a_cache_is_read_too(ids):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(97, 4)

        def forward(self, input_ids):
            return self.embedding(input_ids)

    model = Plain()
    assert torch.equal(read(model, ids), model.embedding(ids))


def test_the_device_is_that_of_a_tensor_with_data(llama):
    assert device_of(llama) == torch.device("cpu")
    llama.model.layers[0].to("meta")
    assert device_of(llama) == torch.device("cpu")
    llama.to("meta")
    assert device_of(llama) == torch.device("cpu") and device_of(nn.Module()) == torch.device("cpu")
    layer = nn.Sequential(nn.Linear(4, 4, bias=False))
    quantize(layer, RTN(8))  # no parameter is left
    assert device_of(layer) == torch.device("cpu")
