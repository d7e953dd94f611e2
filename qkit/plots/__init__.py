"""Figures, one file a subject. They draw and compute nothing: the numbers are those of `qkit.study.anatomy` and its neighbours,
which are named here too, so that a lesson finds the number beside the figure.
"""

from qkit.bench.roofline import attainable
from qkit.plots.activations import channel_maps
from qkit.plots.awq import AlphaSearch, alpha_search, salient_channels
from qkit.plots.base import BLUE, BOUND, GREEN, GREY, METHOD_COLOURS, ORANGE, ORIGINAL, QUANTIZED, RED, STYLE, Picture
from qkit.plots.bitsandbytes import (
    CodebookLevels,
    OutlierMap,
    channel_ranks,
    codebook_levels,
    input_label,
    levels_used,
    outlier_map,
)
from qkit.plots.choosing import LossAgainstBytes, layer_choices, loss_against_bytes
from qkit.plots.file_layout import FilePicture, errors_in_steps, file_layouts
from qkit.plots.gptq import CompensationPicture, against_chunks, compensation_picture, passed_on
from qkit.plots.grids import number_line
from qkit.plots.guesses import Said, guess_against_truth, guesses_against_truth
from qkit.plots.judged import judged_errors
from qkit.plots.kernels import (
    WordPicture,
    on_rooflines,
    operand_fill,
    ratios_to_baseline,
    register_bits,
    times_by_tokens,
    written_by,
)
from qkit.plots.memory import memory_bars
from qkit.plots.paired import paired_differences
from qkit.plots.smoothquant import Migration, migration
from qkit.plots.steps import LayerOnRoofline, grouped_times, listing, step_times, steps_on_roofline
from qkit.plots.weights import (
    ErrorCurve,
    WeightHistogram,
    comparison_picture,
    error_curve,
    layer_errors,
    perplexity_against_bytes,
    sqnr_curves,
    weight_histogram,
)
from qkit.study.anatomy.awq import channel_errors, consumers_weight, fold_label, scale_at
from qkit.study.anatomy.bitsandbytes import four_bit_levels, four_bit_sqnr, level_use
from qkit.study.anatomy.files import file_piece
from qkit.study.anatomy.gptq import ColumnSteps, column_steps, cost_left, output_error
from qkit.study.anatomy.smoothquant import SmoothInput, smooth_inputs, w8a8_error
from qkit.study.anatomy.weights import group_by_scale, levels
from qkit.study.frontier import best_that_fits, frontier

__all__ = [
    "BLUE",
    "BOUND",
    "GREEN",
    "GREY",
    "METHOD_COLOURS",
    "ORANGE",
    "ORIGINAL",
    "QUANTIZED",
    "RED",
    "STYLE",
    "AlphaSearch",
    "CodebookLevels",
    "ColumnSteps",
    "CompensationPicture",
    "ErrorCurve",
    "FilePicture",
    "LayerOnRoofline",
    "LossAgainstBytes",
    "Migration",
    "OutlierMap",
    "Picture",
    "Said",
    "SmoothInput",
    "WeightHistogram",
    "WordPicture",
    "against_chunks",
    "alpha_search",
    "attainable",
    "best_that_fits",
    "channel_errors",
    "channel_maps",
    "channel_ranks",
    "codebook_levels",
    "column_steps",
    "comparison_picture",
    "compensation_picture",
    "consumers_weight",
    "cost_left",
    "error_curve",
    "errors_in_steps",
    "file_layouts",
    "file_piece",
    "fold_label",
    "four_bit_levels",
    "four_bit_sqnr",
    "frontier",
    "group_by_scale",
    "grouped_times",
    "guess_against_truth",
    "guesses_against_truth",
    "input_label",
    "judged_errors",
    "layer_choices",
    "layer_errors",
    "level_use",
    "levels",
    "levels_used",
    "listing",
    "loss_against_bytes",
    "memory_bars",
    "migration",
    "number_line",
    "on_rooflines",
    "operand_fill",
    "outlier_map",
    "output_error",
    "paired_differences",
    "passed_on",
    "perplexity_against_bytes",
    "ratios_to_baseline",
    "register_bits",
    "salient_channels",
    "scale_at",
    "smooth_inputs",
    "sqnr_curves",
    "step_times",
    "steps_on_roofline",
    "times_by_tokens",
    "w8a8_error",
    "weight_histogram",
    "written_by",
]
