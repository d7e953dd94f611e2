"""A script: what vLLM writes of a folder, in a process of its own, for an engine leaves its process changed.

    python vllm_writes.py FOLDER DTYPE TOKENS OUT < ids as JSON

OUT is a file of torch: tokens [n] and logits [n, vocabulary].
"""

import json
import os
import sys

import torch

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}


def main(folder: str, dtype: str, tokens: str, out: str) -> None:
    """Greedily; all logits of each token."""
    from vllm import LLM, SamplingParams

    ids = json.load(sys.stdin)
    engine = LLM(
        model=folder, dtype=dtype, enforce_eager=True, max_model_len=128, max_num_seqs=1, max_logprobs=-1,
        logprobs_mode="raw_logits",
    )  # fmt: skip
    greedy = SamplingParams(temperature=0, max_tokens=int(tokens), ignore_eos=True, logprobs=-1, detokenize=False)
    written = engine.generate([{"prompt_token_ids": ids}], greedy)[0].outputs[0]
    rows = [[row[token].logprob for token in range(len(row))] for row in written.logprobs]
    torch.save({"tokens": torch.tensor(written.token_ids), "logits": torch.tensor(rows)}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
