"""Models as graphs of other runtimes: what is computed, written down operation by operation."""
