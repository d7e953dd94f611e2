"""The recipe that made this model: a 14.2M-parameter Llama trained from nothing on one GPU in six minutes.

    python train_bookworm.py CORPUS OUT [--seconds 360] [--lr 2e-3]

CORPUS is an xz-compressed text file of public-domain prose (185 MB when unpacked). To it is added, three times, what
`qkit.texts("python-docs")` returns: the documentation that ships inside every CPython, without the topics that are held
out for evaluation (what that is worth, `qkit/texts.py` says).

What it gave on an H200 (torch 2.11, bf16 autocast, 6,300 steps of 256 x 512 tokens = 826M tokens, 360 s) stands in
README.md. The schedule follows the clock, so another GPU gives a slightly other model.
"""

import argparse
import lzma
import math
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import qkit

VOCABULARY, CONTEXT, BATCH = 4096, 512, 256
PIECE = 65_536  # characters of a book that the tokenizer is given at once


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Byte-level BPE with <s> (id 0, put before every text) and </s> (id 1)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All texts as one row of token ids, int32."""
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    return np.concatenate([np.array(encoding.ids, np.int32) for encoding in encodings])


def new_model() -> LlamaForCausalLM:
    """The architecture, with random weights (seed 0)."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def learning_rate(peak: float, step: int, done: float) -> float:
    """200 steps of warm-up, then half a cosine over the time that there is, down to 2% of the peak."""
    return peak * min(1, (step + 1) / 200) * max(0.02, 0.5 * (1 + math.cos(math.pi * done)))


def train(model: LlamaForCausalLM, data: torch.Tensor, seconds: float, peak: float) -> None:
    """AdamW on random windows of `data` (token ids on the GPU), each behind a BOS, until the time is up."""

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        logits = F.linear(hidden, model.lm_head.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    compiled = torch.compile(loss_of)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=True)
    bos = torch.zeros(BATCH, 1, dtype=torch.long, device=data.device)
    window = torch.arange(CONTEXT, device=data.device)
    start, step = time.time(), 0
    while (done := (time.time() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(peak, step, done)
        at = torch.randint(0, len(data) - CONTEXT - 1, (BATCH, 1), device=data.device) + window
        with torch.autocast("cuda", torch.bfloat16):
            loss = compiled(torch.cat([bos, data[at].long()], 1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 100 == 0:
            tokens = step * BATCH * CONTEXT / 1e6
            print(f"{step} loss {loss.item():.4f} {tokens:.0f}M tokens {time.time() - start:.0f} s", flush=True)


def main() -> None:
    """Tokenizer, data, training, saving."""
    parser = argparse.ArgumentParser(description="Train bookworm-14m.")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument("--lr", type=float, default=2e-3)
    arguments = parser.parse_args()

    with lzma.open(arguments.corpus, "rt", encoding="utf-8") as file:
        books = file.read()
    docs = qkit.texts("python-docs")
    pieces = [books[i : i + PIECE] for i in range(0, len(books), PIECE)]
    tokenizer = train_tokenizer([*pieces[::6], docs, docs])
    doc_ids = encode(tokenizer, [docs])
    data = torch.from_numpy(np.concatenate([encode(tokenizer, pieces), doc_ids, doc_ids, doc_ids])).cuda()

    torch.set_float32_matmul_precision("high")
    model = new_model().cuda()
    train(model, data, arguments.seconds, arguments.lr)
    model.half().save_pretrained(arguments.out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
