"""The README's own loop runs as it stands there."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


def test_the_loop_in_the_readme_learns() -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "periodic(" in block)

    def loss_fn(params: jax.Array, batch: jax.Array) -> jax.Array:
        return jnp.mean((batch - params) ** 2)

    names = {"loss_fn": loss_fn}
    exec(code, names)
    rng = np.random.default_rng(0)
    batches = rng.normal(3.0, 0.1, size=(8, 130, 4, 2)).astype(np.float32)
    center, losses = names["run"](jnp.zeros(2), batches)
    np.testing.assert_allclose(center, 3.0, atol=0.1)
    assert losses.shape == (8, 130)
    assert float(losses[:, -1].mean()) < 0.1 < float(losses[:, 0].mean())


def test_every_path_in_the_readme_exists() -> None:
    root = pathlib.Path(__file__).parent.parent
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / path).exists(), path
