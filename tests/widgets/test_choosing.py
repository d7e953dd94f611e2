"""The chooser without a browser: every control moves the picture, and it says what the functions say."""

import base64

import pytest

import qkit
from qkit.plots import best_that_fits
from qkit.widgets import ChooserExplorer


@pytest.fixture
def points(llama):
    full = 4e-6 * sum(p.numel() for p in llama.parameters())
    shares = {"GPTQ W3 g128": 0.35, "NF4 b64 dq": 0.4, "GPTQ W4 g128": 0.41, "RTN W8 per channel": 0.45}
    return {name: (share * full, 1 / (1 + i)) for i, (name, share) in enumerate(shares.items())}


def test_every_control_changes_the_image(llama, points):
    explorer = ChooserExplorer(llama, points)
    explorer.megabytes.value = explorer.megabytes.max
    seen = {explorer.image.value}
    moves = (
        (explorer.quality, "smallest"),
        (explorer.calibration, False),
        (explorer.quality, "best"),
        (explorer.hardware, "gpu"),
        (explorer.megabytes, explorer.megabytes.min),
    )
    for control, value in moves:
        control.value = value
        if control is not explorer.hardware:  # 16 bits fit or not, whatever the hardware
            assert explorer.image.value not in seen, (control.description, value)
        seen.add(explorer.image.value)


def test_it_says_what_the_library_says(llama, points):
    explorer = ChooserExplorer(llama, points, quality="smallest")
    explorer.megabytes.value = explorer.megabytes.max
    parameters = sum(p.numel() for p in llama.parameters())
    layers = sum(m.weight.numel() for name, m in llama.named_modules() if name.endswith("_proj"))
    budget = explorer.megabytes.value
    advice = qkit.recommend(parameters, budget / 1e3, "cpu", "smallest", embeddings=parameters - layers)
    assert f"chart: {advice.name}" in explorer.picture.alt
    assert f"best measured: {best_that_fits(points, budget)}" in explorer.picture.alt


def test_where_nothing_fits_both_say_so(llama):
    explorer = ChooserExplorer(llama, {"GPTQ W3 g128": (1e-3, 1.0), "RTN W8 per channel": (2e-3, 0.1)}, megabytes=0.0)
    assert "nothing fits, chart: nothing fits" in explorer.picture.alt


def test_the_output_carries_a_picture_and_a_stable_line_for_readers_without_a_kernel(llama, points):
    data, metadata = ChooserExplorer(llama, points, megabytes=0.2)._repr_mimebundle_()
    assert data["text/plain"].startswith("ChooserExplorer(megabytes=")
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert "GPTQ W4 g128" in metadata["image/png"]["alt"]
