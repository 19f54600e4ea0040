"""How workers step: where they live, their state, local steps, and the communication that is due.

Imports `collectives` and `optimizers`; knows nothing of files, processes or settings.
"""
