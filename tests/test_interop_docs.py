"""The code on the page "Bring your own network" runs.

Its Flax part was run by hand: Flax is not a dependency.
"""

import pathlib
import re

import equinox as eqx
import jax


PAGE = pathlib.Path(__file__).parent.parent / "docs" / "bring-your-own-network.md"


def test_the_code_on_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {}
    # It is written for a user's session, which has neither strictness.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            if "nnx" not in block:
                exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks) == 4
    assert names["sample"].shape == (3, 8, 8)
    assert eqx.tree_equal(names["again"].net, names["denoiser"].net)
    assert float(names["net"].layers[1].weight.sum()) == 32
