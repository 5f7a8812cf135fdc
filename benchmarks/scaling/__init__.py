"""The parts of benchmarks/scale.py: what is measured, the process that does it, and what is made of the numbers."""
