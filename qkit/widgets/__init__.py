"""Widgets: figures of `qkit.plots` with sliders, one file a subject."""

from qkit.widgets.awq import AWQExplorer
from qkit.widgets.bitsandbytes import CodebookExplorer, OutlierExplorer
from qkit.widgets.choosing import ChooserExplorer
from qkit.widgets.files import FileExplorer
from qkit.widgets.gptq import CompensationExplorer
from qkit.widgets.live import LivePicture
from qkit.widgets.roofline import RooflineExplorer
from qkit.widgets.smoothquant import SmoothQuantExplorer
from qkit.widgets.weights import ErrorExplorer, Explorer, HistogramExplorer, group_options
from qkit.widgets.words import WordExplorer

__all__ = [
    "AWQExplorer",
    "ChooserExplorer",
    "CodebookExplorer",
    "CompensationExplorer",
    "ErrorExplorer",
    "Explorer",
    "FileExplorer",
    "HistogramExplorer",
    "LivePicture",
    "OutlierExplorer",
    "RooflineExplorer",
    "SmoothQuantExplorer",
    "WordExplorer",
    "group_options",
]
