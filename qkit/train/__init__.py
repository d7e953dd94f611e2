"""After rounding: what may still learn."""
