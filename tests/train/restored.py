"""Restores the newest checkpoint of one workdir and saves what it got into another, in as many processes as started it.

python restored.py FROM TO --config.mesh.fsdp=4 ...
"""

import sys
from pathlib import Path

import jax

if __name__ == "__main__":
    source, target, *overrides = sys.argv[1:]
    jax.distributed.initialize()
    from etils import epath

    from vqgan_jax import cli
    from vqgan_jax.train import program, stored
    from vqgan_jax.train.checkpoint import Checkpoints
    from vqgan_jax.train.program import abstract_state

    config = cli.load_config(str(Path(__file__).with_name("tiny_prior.py")), overrides)
    abstract = abstract_state(config, program.make_mesh(config))
    with Checkpoints(epath.Path(source), best="nll") as old, Checkpoints(epath.Path(target), best="nll") as new:
        restored = old.newest(lambda *_: abstract)
        assert restored is not None
        found = jax.tree.map(lambda leaf: leaf.sharding, restored.state)
        assert found == jax.tree.map(lambda leaf: leaf.sharding, abstract)
        new.save(restored.step, restored.state, restored.data, stored.to_json(config), None)
