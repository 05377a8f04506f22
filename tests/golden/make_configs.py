"""Writes configs of a commit, as its runs store them, and the arrays that its code makes of them.

    git worktree add ../old COMMIT
    cd ../old && PYTHONPATH=. python REPOSITORY/tests/golden/make_configs.py REPOSITORY/tests/golden/configs COMMIT

It runs that commit's code, so it uses only what every commit has. The shapes go to `shapes.json`; where another commit
has written them there already, they must be the same. README.md in the folder names the commits.
"""

import dataclasses
import functools
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

RUN = {"steps": 10, "batch_size": 8, "data.image_size": 16, "data.resize": (16, 20), "data.num_threads": 1}
TOKENIZER = RUN | {
    "model.channels": 32,
    "model.channel_multipliers": (1, 1),
    "model.num_res_blocks": 1,
    "model.attn_resolutions": (),
    "model.resolution": 16,
    "model.latent_channels": 32,
    "model.dtype": "float32",
    "quantizer.codebook_size": 32,
    "quantizer.embed_dim": 8,
    "quantizer.kmeans_batches": 2,
    "quantizer.revive_below": 0.1,
    "discriminator.channels": 8,
    "discriminator.num_layers": 2,
}
PRIOR = RUN | {
    "tokenizer.codebook_size": 32,
    "tokenizer.downsample_factor": 2,
    "condition.num_classes": 11,
    "transformer.depth": 1,
    "transformer.width": 16,
    "transformer.num_heads": 2,
    "transformer.dtype": "float32",
}
BOXES = PRIOR | {
    "data.source": "scenes",
    "condition.kind": "boxes",
    "condition.num_classes": 8,
    "condition.num_tokens": 65,
    "condition.max_objects": 6,
}
PAGES: dict[str, tuple[int, dict[str, Any]]] = {"tokenizer": (1, TOKENIZER), "prior": (2, PRIOR), "boxes": (2, BOXES)}


def page(recipe: Any, name: str) -> dict[str, Any]:
    """The config of a page; KeyError where that commit has no such keys."""
    stage, values = PAGES[name]
    if not hasattr(recipe, f"stage{stage}"):
        raise KeyError(f"stage {stage}")
    config = getattr(recipe, f"stage{stage}")().to_dict()
    if hasattr(recipe, "read"):
        return recipe.vary(config, values).to_dict()
    for path, value in values.items():
        *sections, key = path.split(".")
        section = functools.reduce(lambda tree, name: tree[name], sections, config)
        section[key] = type(section[key])(value)
    return config


def state_of(config: Any) -> Any:
    """Shapes of the state of a run."""
    if Path("vqgan_jax/nn/fields.py").exists():  # stages are classes
        return importlib.import_module("vqgan_jax.models").state_shapes(config)
    stage = importlib.import_module(f"vqgan_jax.train.stage{config.stage}")
    task = getattr(stage, "from_config", None) or stage.build
    if config.stage == 2:
        return jax.eval_shape(functools.partial(stage.init, task(config)), jax.random.key(0))
    size = config.data.image_size
    images = jax.ShapeDtypeStruct((1, config.batch_size, size, size, 3), jnp.uint8)
    return jax.eval_shape(functools.partial(stage.init, task(config)), jax.random.key(0), images)


def shapes(tree: Any) -> dict[str, str]:
    """Dtype and shape of each leaf by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def main(folder: Path, commit: str) -> None:
    """Writes the pages of the checkout in the working folder."""
    sys.path.insert(0, "experiments")
    recipe, config = importlib.import_module("recipe"), importlib.import_module("vqgan_jax.config")
    if hasattr(config, "read"):  # since version 2, whose defaults are there, too
        recipe, parse = config, config.read
    else:
        parse = getattr(config, "parse", None) or importlib.import_module("vqgan_jax.parsing").parse
    store = dataclasses.asdict
    for module in ("stored", "train.stored"):
        if Path("vqgan_jax", *module.split(".")).with_suffix(".py").exists():
            store = importlib.import_module(f"vqgan_jax.{module}").to_json
    path = folder / "shapes.json"
    known, found = json.loads(path.read_text()) if path.exists() else {}, {}
    for name in PAGES:
        try:
            config = parse(page(recipe, name))
        except KeyError as missing:
            print(f"{commit} has no {name}: {missing}")
            continue
        arrays = shapes(state_of(config))
        if known.setdefault(name, arrays) != arrays:
            raise ValueError(f"{commit} makes other arrays of {name} than another commit; give the page another name.")
        found[name] = store(config)
    (folder / f"{commit}.json").write_text(json.dumps(found, indent=1) + "\n")
    path.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
