"""GGUF, the file of llama.cpp: read with every block type that the package `gguf` dequantizes, written from codes."""
