"""The parts of experiments/convergence.py, one file a theorem."""
