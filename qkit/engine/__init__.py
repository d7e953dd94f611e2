"""From a model and a plan to a quantized model and a report."""
