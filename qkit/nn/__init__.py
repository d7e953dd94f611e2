"""Layers that hold a quantized weight."""
