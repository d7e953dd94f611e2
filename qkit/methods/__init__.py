"""One file a method: pure functions from a weight (and its statistics) to a QTensor."""
