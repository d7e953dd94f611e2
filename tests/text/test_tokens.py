import pytest
import torch

from qkit.text.tokens import begin_token, calibration_chunks, passage_chunks, token_chunks


@pytest.fixture
def words(word_tokenizer):
    return word_tokenizer(bos_token="w00", eos_token="w01")


def text(*ids: int) -> str:
    return " ".join(f"w{i:02}" for i in ids)


def test_chunks_are_consecutive_behind_a_bos_and_the_tail_is_left_out(words):
    chunks = token_chunks(text(*range(3, 14)), words, length=4)
    assert chunks.dtype == torch.int64
    assert chunks.tolist() == [[0, 3, 4, 5, 6], [0, 7, 8, 9, 10]]


def test_a_text_of_exactly_one_chunk_is_enough(words):
    assert token_chunks(text(3, 4, 5), words, length=3).tolist() == [[0, 3, 4, 5]]


def test_the_usual_chunk_is_511_tokens_behind_a_bos(tokenizer):
    chunks = token_chunks("word " * 1200, tokenizer)
    assert chunks.shape[1] == 512
    assert set(chunks[:, 0].tolist()) == {tokenizer.bos_token_id}
    assert tokenizer.bos_token_id not in chunks[:, 1:]


def test_max_chunks_takes_the_first(words):
    assert token_chunks(text(*range(3, 14)), words, 4, max_chunks=1).tolist() == [[0, 3, 4, 5, 6]]


@pytest.mark.parametrize("count", [0, -1])
def test_less_than_one_chunk_is_refused(words, count):
    with pytest.raises(ValueError, match=f"max_chunks={count} leaves nothing to read; give at least 1, or None"):
        token_chunks(text(3, 4, 5), words, 1, max_chunks=count)


def test_several_texts_are_joined_by_a_blank_line(tokenizer):
    pieces = ["One sentence. " * 30, "Another one. " * 30]
    assert torch.equal(token_chunks(pieces, tokenizer, 50), token_chunks("\n\n".join(pieces), tokenizer, 50))


def test_texts_that_each_fill_a_chunk_are_passages_and_are_cut_by_themselves(words):
    chunks, counts = passage_chunks([text(3, 4, 5, 6, 7), text(13, 14), text(23, 24, 25)], words, length=2)
    assert chunks.tolist() == [[0, 3, 4], [0, 5, 6], [0, 13, 14], [0, 23, 24]] and counts == [2, 1, 1]


@pytest.mark.parametrize(("max_chunks", "counts"), [(1, [1]), (2, [2]), (3, [2, 1]), (9, [2, 1])])
def test_the_first_chunks_are_those_of_the_first_passages(words, max_chunks, counts):
    passages = [text(3, 4, 5, 6), text(13, 14)]
    chunks, found = passage_chunks(passages, words, 2, max_chunks)
    assert found == counts and torch.equal(chunks, passage_chunks(passages, words, 2)[0][:max_chunks])


@pytest.mark.parametrize("given", [text(3, 4, 5, 6), [text(3, 4, 5, 6)], [text(3), text(4, 5, 6)]])
def test_of_any_other_text_each_chunk_is_a_passage(words, given):
    chunks, counts = passage_chunks(given, words, 2)
    assert torch.equal(chunks, token_chunks(given, words, 2)) and counts == [1] * len(chunks)


def test_of_token_ids_each_sequence_is_a_passage():
    ids = torch.arange(12).reshape(3, 4)
    chunks, counts = passage_chunks(ids)
    assert torch.equal(chunks, ids) and counts == [1, 1, 1]


def test_passages_are_refused_as_texts_are(words):
    with pytest.raises(ValueError, match="max_chunks=0 leaves nothing to read"):
        passage_chunks([text(3, 4), text(5, 6)], words, 2, max_chunks=0)
    with pytest.raises(ValueError, match="a text needs a tokenizer"):
        passage_chunks([text(3, 4), text(5, 6)])
    with pytest.raises(TypeError, match="text is a list that holds a int"):
        passage_chunks([text(3, 4), 5], words, 2)


def test_token_ids_come_back_as_they_are():
    ids = torch.arange(12).reshape(3, 4)
    assert torch.equal(token_chunks(ids), ids)
    assert torch.equal(token_chunks(ids, max_chunks=2), ids[:2])


@pytest.mark.parametrize(
    "ids",
    [torch.zeros(4, dtype=torch.long), torch.zeros(2, 4), torch.zeros(0, 4, dtype=torch.long)],
    ids=["1-d", "float", "empty"],
)
def test_what_are_no_token_ids_is_refused(ids):
    with pytest.raises(ValueError, match=r"token ids are .*; give integers \[sequences, length\]"):
        token_chunks(ids)


def test_a_text_shorter_than_a_chunk_is_refused_with_both_lengths(words):
    with pytest.raises(ValueError, match="the text has 3 tokens, one chunk takes 4; give a longer text"):
        token_chunks(text(3, 4, 5), words, 4)


def test_a_text_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="a text needs a tokenizer; give tokenizer=, or token ids"):
        token_chunks("text")


def test_eos_stands_in_where_there_is_no_bos(word_tokenizer):
    assert begin_token(word_tokenizer(eos_token="w07")) == 7
    assert begin_token(word_tokenizer(bos_token="w00", eos_token="w07")) == 0


def test_a_tokenizer_with_neither_is_refused(word_tokenizer):
    with pytest.raises(ValueError, match=r"neither a BOS nor an EOS token; set tokenizer\.bos_token"):
        begin_token(word_tokenizer())


PLAIN = torch.zeros(2, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("ids", "form"),
    [
        (PLAIN.to("meta"), "without data"),
        (PLAIN.to_sparse(), "sparse or quantized"),
        (torch.quantize_per_tensor(PLAIN.float(), 1.0, 0, torch.quint8), "sparse or quantized"),
        (torch.nested.nested_tensor([PLAIN[0], PLAIN[1, :2]]), "nested"),
    ],
    ids=["meta", "sparse", "quantized", "nested"],
)
def test_ids_that_are_no_plain_tensor_are_refused(ids, form):
    with pytest.raises(ValueError, match=f"token ids are a tensor that is {form}; give a plain tensor of integers"):
        token_chunks(ids)


@pytest.mark.parametrize("no_tokenizer", ["gpt2", 5, object(), lambda text: text], ids=lambda it: type(it).__name__)
@pytest.mark.parametrize("chunks", [token_chunks, calibration_chunks])
def test_what_is_no_tokenizer_is_a_type_error(chunks, no_tokenizer):
    with pytest.raises(TypeError, match=r"tokenizer is a \w+; give one of transformers: model, tokenizer = qkit\.load"):
        chunks("a text", no_tokenizer)


@pytest.mark.parametrize("count", [0, -1, 2.5, "3", float("nan")])
@pytest.mark.parametrize("text", ["a text", PLAIN], ids=["text", "ids"])
@pytest.mark.parametrize("chunks", [token_chunks, calibration_chunks])
def test_a_count_of_chunks_that_is_none_is_refused_for_texts_and_ids_alike(chunks, text, count):
    with pytest.raises((ValueError, TypeError), match=rf"max_chunks={count!r} (leaves nothing to read|is no whole nu)"):
        chunks(text, max_chunks=count)
