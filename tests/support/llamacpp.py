"""llama.cpp as a judge, by the package xllamacpp: its greedy text, and how it compares with ours."""

import torch

from verdicts import Heard

CLOSE = 0.1  # nats; measured 0.07 at most


def llama_cpp(path):
    """A server of one file. More threads than idle cores cost it minutes, so one."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.verbosity = 512, 1, 0, 0
    params.warmup = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def written(server, prompt, tokens: int = 40) -> tuple[str, int]:
    """Greedy text, and of how many tokens the prompt was."""
    answer = server.handle_completions({"prompt": prompt, "max_tokens": tokens, "temperature": 0.0})
    return answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]


def heard(server, ids: torch.Tensor, vocabulary: int, tokens: int) -> Heard:
    """Greedy tokens and all log-probabilities; of ids [1, n], so that nobody cuts the text otherwise."""
    asked = {
        "prompt": ids[0].tolist(),
        "max_tokens": tokens,
        "temperature": 0.0,
        "logprobs": vocabulary,
        "ignore_eos": True,
    }
    places = server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
    rows = torch.full((len(places), vocabulary), -torch.inf)
    for row, place in zip(rows, places, strict=True):
        for one in place["top_logprobs"]:
            row[one["id"]] = one["logprob"]
    return Heard([place["id"] for place in places], rows)


def ours(model, tokenizer, prompt: str, tokens: int = 40) -> str:
    """The greedy text of a model of transformers."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def behind(model, tokenizer, prompt: str, theirs: str) -> torch.Tensor:
    """By how many nats each token of their text is less likely than the most likely one, by our model, given their text."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    answer = tokenizer(theirs, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        likely = torch.log_softmax(model(torch.cat([ids, answer], 1)).logits[0, :-1], -1)[ids.shape[1] - 1 :]
    return likely.max(-1).values - likely.gather(1, answer.T)[:, 0]


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Activations as llama.cpp's products read them: INT8 in blocks of 32, halves away from zero, scales in float16."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    steps = torch.where(scale > 0, blocks / scale, torch.zeros_like(blocks))
    return (steps.sign() * (steps.abs() + 0.5).floor() * scale.half().float()).reshape(x.shape)
