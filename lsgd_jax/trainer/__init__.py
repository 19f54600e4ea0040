"""`Trainer`: a run of a task and a method from its beginning, or a checkpoint, to its results.

Imports `tasks`, `accounting` and what is below them; knows no flags.
"""
