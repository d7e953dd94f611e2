"""How much memory loading takes: quantized on the fly, quantized afterwards, and from a folder that is quantized already.

    python benchmarks/loading_memory.py [hidden_size] [layers]

Each way is a process of its own. What is counted is memory of the process alone (RssAnon, looked at every 5 ms): pages of the
file, which transformers maps, are the system's to take back. Linux only.
"""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

WAYS = ("on the fly", "quantized folder", "loaded, then quantized")


def own_memory() -> float:
    """Megabytes that are this process's and no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def measure(way: str, floats: str, saved: str) -> None:
    """Load one way, and print how far memory rose meanwhile and afterwards."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    import qkit

    scheme = qkit.NF4()
    qkit.quantize_tensor(torch.randn(64, 128), scheme)  # what is imported and compiled at first is not the model's
    base, peak, over = own_memory(), [0.0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            peak[0] = max(peak[0], own_memory())
            time.sleep(0.005)

    watching = threading.Thread(target=watch)
    watching.start()
    if way == WAYS[0]:
        config = qkit.integrations.transformers.QkitConfig(scheme)
        model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(floats, quantization_config=config)
    elif way == WAYS[1]:
        model = AutoModelForCausalLM.from_pretrained(saved)
    else:
        model = AutoModelForCausalLM.from_pretrained(floats)
        qkit.quantize(model, scheme)
    over.set()
    watching.join()
    print(f"{way:<24} {peak[0] - base:6.0f} MB more at the peak, {own_memory() - base:6.0f} afterwards")
    if way == WAYS[0]:
        model.save_pretrained(saved)


def main(hidden_size: int = 1024, layers: int = 12) -> None:
    """A random Llama in bfloat16, and the three ways."""
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
        floats, saved = Path(folder) / "floats", Path(folder) / "saved"
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(floats)
        print(f"{(floats / 'model.safetensors').stat().st_size / 1e6:.0f} MB of bfloat16")
        for way in WAYS:
            subprocess.run([sys.executable, __file__, way, str(floats), str(saved)], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in WAYS:
        measure(*sys.argv[1:])
    else:
        main(*map(int, sys.argv[1:]))
