"""What quantization costs and saves: measured, compared, advised."""
