"""A page that shows one run or several: curves, leaders, bytes, settings, what happened. `python -m lsgd_jax.report`.

Imports what reads a run's files; nothing of the library imports it but `train.py`.
"""
