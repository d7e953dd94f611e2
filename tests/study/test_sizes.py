"""Sizes are counted by hand here."""

from qkit import RTN, disk_bytes, memory_bytes, quantize, save
from qkit.study.sizes import float32_bytes


def test_memory_is_every_parameter_and_buffer_once(make_model):
    tied = make_model("llama", tie=True)
    buffers = sum(buffer.nbytes for buffer in tied.buffers())
    assert memory_bytes(tied) == float32_bytes(tied) + buffers
    assert memory_bytes(make_model("llama", tie=False)) == memory_bytes(tied) + 97 * 48 * 4
    assert memory_bytes(tied.half()) < 0.6 * float32_bytes(tied)


def test_quantizing_takes_the_weights_out_of_memory_and_puts_their_codes_there(llama):
    before = memory_bytes(llama)
    report = quantize(llama, RTN(bits=4, group_size=4))
    floats = sum(4 * layer.shape[0] * layer.shape[1] for layer in report.layers)
    assert memory_bytes(llama) == before - floats + report.nbytes


def test_on_disk_are_the_saved_weights_and_the_manifest(llama, tmp_path):
    quantize(llama, RTN(bits=4, group_size=4))
    save(llama, tmp_path)
    saved = [*tmp_path.glob("weights-*.safetensors"), tmp_path / "qkit.json"]
    assert disk_bytes(llama) == sum(path.stat().st_size for path in saved)


def test_float32_is_what_transformers_writes_but_for_the_header(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    written = (tmp_path / "model.safetensors").stat().st_size
    assert 0 < written - float32_bytes(llama) < 10_000
