"""What lessons take apart: the numbers that their figures draw, got by calling the methods. One file a subject, as in plots."""
