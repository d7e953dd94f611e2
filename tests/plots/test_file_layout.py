"""The figures of lesson 10 show the bytes of the piece that they were given, and whose they are."""

import numpy as np
import pytest

from qkit import plots
from qkit.plots.file_layout import CHOSEN, NUMBER
from qkit.study.anatomy.files import Piece

WORD = Piece("awq", "word of qweight", "model.safetensors", 1234, np.array([0x98, 0x2D, 0x86, 0xA8], np.uint8),
             np.array([8, 10, 12, 14, 9, 11, 13, 15]), np.full(8, 77))  # fmt: skip
BYTES = np.r_[np.float16([-0.5]).view(np.uint8), np.arange(16, 32)].astype(np.uint8)
BLOCK = Piece("gguf", "block Q4_0", "model.gguf", 99, BYTES,
              np.r_[[-1] * 4, [9] * 32], np.r_[[-1] * 4, np.arange(64, 96).reshape(2, 16).T.ravel()])  # fmt: skip


def texts(axes):
    return [text.get_text() for text in axes.texts if text.get_text()]


def test_each_piece_is_a_row_of_its_half_bytes_and_owners():
    picture = plots.file_layouts([WORD, BLOCK], 9, 77, "one code")
    assert picture.data["fields, awq"].tolist().index(CHOSEN) == 4
    assert (picture.data["fields, gguf"] == NUMBER).sum() == 4
    assert picture.data["owners, awq"].tolist() == [8, 10, 12, 14, 9, 11, 13, 15]
    assert picture.data["octets, awq"].tolist() == [0x98, 0x2D, 0x86, 0xA8]
    above, below = picture.axes
    assert texts(above) == ["8", "9", "13", "2", "6", "8", "8", "10", "8", "10", "12", "14", "9", "11", "13", "15",
                            "98", "2d", "86", "a8"]  # fmt: skip
    assert texts(below)[0] == "-0.5000" and above.get_title(loc="left").endswith("rows of column 77")
    assert below.get_title(loc="left") == "gguf, block Q4_0 at byte 99 of model.gguf: columns of row 9"


def test_the_words_say_what_is_seen():
    alt = plots.file_layouts([WORD], 9, 77, "one code").alt
    assert alt == (
        "one code: awq: 98 2d 86 a8, word of qweight in model.safetensors. The code 6 of row 9, column 77 is half "
        "byte 4, counted from 0, the lower half of a byte first. Codes in the order of the file are those of rows of column 77: "
        "8, 10, 12, 14, 9, 11, 13, 15."
    )


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="there is no piece to draw; give at least one"):
        plots.file_layouts([], 0, 0)


def test_another_piece_gives_the_picture_that_is_drawn_of_it():
    picture = plots.FilePicture(BLOCK, 9, 77, "one")
    fresh = plots.FilePicture(WORD, 9, 77, "another")
    picture.show(WORD, 9, 77, "another")
    assert picture.alt == fresh.alt and picture.png() == fresh.png()
    picture.show(BLOCK, 9, 77, "one")
    assert picture.png() == plots.FilePicture(BLOCK, 9, 77, "one").png()


def test_what_shares_the_piece_is_marked():
    shares = plots.FilePicture(WORD, 9, 77, "a weight").data["shares"]
    assert np.argwhere(shares == 2).tolist() == [[9, 77]]
    assert np.argwhere(shares == 1).tolist() == [[r, 77] for r in (8, 10, 11, 12, 13, 14, 15)]


def test_errors_are_counted_in_steps():
    picture = plots.errors_in_steps(
        {"as it stands": np.full((2, 4), [0.96, 1.04] * 2), "plus one": np.tile([-0.04, 0.04], 4)}, "a layer"
    )
    edges = picture.data["edges"]
    for name, low, high in (("as it stands", 0.9, 1.1), ("plus one", -0.1, 0.1)):
        share = picture.data[name]
        assert share.sum() == 100 and np.allclose(edges[:-1][share > 0], [low, (low + high) / 2])
    assert picture.alt == (
        "a layer. Rounding errs by half a step at most. as it stands: 1.0 steps in the mean; plus one: 0.0 steps in the mean."
    )
    with pytest.raises(ValueError, match="there is no reading to draw"):
        plots.errors_in_steps({})
