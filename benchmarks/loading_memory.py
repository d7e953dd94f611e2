"""How much memory loading takes: quantized on the fly, quantized afterwards, and from folders that are quantized already.

    python benchmarks/loading_memory.py [hidden_size] [layers]

Each way is a process of its own. Two things are counted, every 5 ms: memory of the process alone (RssAnon), and all that is
resident (VmRSS), with pages of the file, which transformers maps and the system may take back. Linux only.
"""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

WAYS = ("on the fly", "quantized folder", "folder of bitsandbytes", "loaded, then quantized")


def memory() -> list[float]:
    """Megabytes that are this process's and no file's, and those with the pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.endswith(" kB")}
    return [sizes["RssAnon"], sizes["VmRSS"]]


def measure(way: str, floats: str, saved: str, theirs: str) -> None:
    """Load one way, and print how far memory rose meanwhile and afterwards."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    import qkit

    scheme = qkit.NF4()
    qkit.quantize_tensor(torch.randn(64, 128), scheme)  # what is imported and compiled at first is not the model's
    base, over = memory(), threading.Event()
    peak = base

    def watch() -> None:
        nonlocal peak
        while not over.is_set():
            peak = [max(pair) for pair in zip(peak, memory(), strict=True)]
            time.sleep(0.005)

    watching = threading.Thread(target=watch)
    began = time.perf_counter()
    watching.start()
    if way == WAYS[0]:
        config = qkit.integrations.transformers.QkitConfig(scheme)
        model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(floats, quantization_config=config)
    elif way == WAYS[1]:
        model = AutoModelForCausalLM.from_pretrained(saved)
    elif way == WAYS[2]:
        model = AutoModelForCausalLM.from_pretrained(theirs)
    else:
        model = AutoModelForCausalLM.from_pretrained(floats)
        qkit.quantize(model, scheme)
    over.set()
    watching.join()
    seconds = time.perf_counter() - began
    rows = [[round(now - before) for now, before in zip(now, base, strict=True)] for now in (peak, memory())]
    (alone, resident), (alone_after, resident_after) = rows
    print(f"| {way} | {alone} | {alone_after} | {resident} | {resident_after} | {seconds:.0f} |", flush=True)
    if way == WAYS[0]:
        model.save_pretrained(saved)
        qkit.save(model, theirs, format="bitsandbytes")


def main(hidden_size: int = 1024, layers: int = 12) -> None:
    """A random Llama in bfloat16, and every way."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 64,
        tie_word_embeddings=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        floats, *others = [Path(folder) / name for name in ("floats", "saved", "theirs")]
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        model.save_pretrained(floats)
        size = (floats / "model.safetensors").stat().st_size
        print(f"{model.num_parameters() / 1e6:.0f}M parameters, {size / 1e6:.0f} MB of bfloat16\n")
        print("| | own memory, peak | after | resident, peak | after | s |\n|---|---|---|---|---|---|", flush=True)
        del model
        for way in WAYS:
            subprocess.run([sys.executable, "-W", "ignore", __file__, way, floats, *others], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in WAYS:
        measure(*sys.argv[1:])
    else:
        main(*map(int, sys.argv[1:]))
