"""The parts of benchmarks/speed.py: each measures one thing, and nothing else."""
