"""Greedy completion."""

import torch

import qkit


def test_it_appends_the_most_probable_token_again_and_again(embedded):
    model, tokenizer = embedded
    prompt = "She opened the letter and"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    for _ in range(8):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert qkit.complete(model, tokenizer, prompt, tokens=8) == tokenizer.decode(ids[0], skip_special_tokens=True)
