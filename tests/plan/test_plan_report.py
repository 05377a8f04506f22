import dataclasses

import jax
import pytest
from plan_cases import PAGES, mesh_of

from vqgan_jax import cli
from vqgan_jax.plan import lowering, report, topology
from vqgan_jax.plan.lowering import Outcome
from vqgan_jax.train.program import abstract_state

COSTS = [
    ("top_k", "sampling forward", "ge", 30.0, 300.0),  # a loop in the loop
    ("product", "Block forward", "dot_general", 10.0, 500.0),
    ("prefill", "Block forward", "dot_general", 1.0, 200.0),
]


def plan(outcome: Outcome) -> report.Plan:
    target = topology.Topology("v5p:2x2x1", (None,), topology.CHIPS["v5p"], "a compiler")
    sizes = {"parameter_bytes": 8, "optimizer_bytes": 0, "model_flops": 1.0, "items": 11}
    return report.Plan("page.py", "sample", target, {}, 1, **sizes, outcome=outcome, rounds=10, token_bytes=2.765e12)


def test_a_token_takes_a_round_of_the_loop_and_nothing_that_comes_before_it():
    outcome = Outcome(fits=True, hbm_bytes=8.0, optimal_seconds=500.0, cycles=1000.0, costs=COSTS)
    assert plan(outcome).token_seconds == pytest.approx((80 / 1.75e9, 40.0, 1.0))
    record = plan(outcome).record()
    assert [record[f"token_{name}seconds"] for name in ("", "optimal_", "floor_")] == pytest.approx(
        [80 / 1.75e9, 40.0, 1.0]
    )
    titles = [table.title for table in report.tables([plan(outcome)])]
    assert "a token of each row, ms" in titles


def test_where_nothing_is_known_no_token_is_told():
    without = plan(Outcome(fits=True, hbm_bytes=8.0))
    assert without.token_seconds is None
    assert without.record()["token_floor_seconds"] is None
    assert len(report.tables([without])) == 2


@pytest.mark.parametrize(("sizes", "rows"), [((1, 1, 1), 8), ((2, 2, 1), 2), ((2, 1, 2), 4)])
def test_a_token_reads_the_parameters_and_half_of_the_keys_and_values(sizes, rows):
    """Two layers of 32 channels; 64 codes behind a class, of which the last is not fed."""
    config = cli.load_config(f"{PAGES['prior']}:plain", ("--config.transformer.dtype=bfloat16",))
    mesh = mesh_of(*sizes)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_state(config, mesh).params["transformer"]))
    cache = 2 * 2 * 32 * 64
    assert lowering.token_bytes(config, mesh) == 2 * (parameters + rows * cache / 2) / sizes[2]
    guided = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, guidance=2.0))
    assert lowering.token_bytes(guided, mesh) == 2 * (parameters + 2 * rows * cache / 2) / sizes[2]
