"""Layer 2: distributed optimizers, one file a method.

`distributed_optimizer.py` says what one is, `lsgd.py` is Algorithm 1 of the
paper, the other methods stand beside it, and `periodic.py` turns any of them
into an optax transform. A new method is a file here, a name in
`lsgd_jax/__init__.py`, and an entry in `lsgd_jax/config/methods.py`.
"""
