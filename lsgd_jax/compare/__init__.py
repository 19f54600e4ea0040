"""Comparing methods: the grid, its runs, and the report. `python -m lsgd_jax.compare` is its command line.

Imports everything below; nothing of the library imports it.
"""
