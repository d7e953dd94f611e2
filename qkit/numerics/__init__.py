"""Numbers and codes: the mapping, tables, packing, and what a quantized weight is when it is stored."""
