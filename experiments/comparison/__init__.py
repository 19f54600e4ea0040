"""Comparing methods: the grid, its runs, and the report. `experiments/compare.py` is its command line."""
