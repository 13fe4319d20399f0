"""Searching among atoms: prices, penalty, controller, projection, and whole searches with kills survived."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_images import write_dataset

from hwnas.atom_costs import AtomCost, CountCost, LatencyCost, cheapest, slope_at
from hwnas.budget import Budget
from hwnas.errors import ClaimError, HwnasError
from hwnas.export import parity
from hwnas.latency.atoms import cover_archs
from hwnas.models import load_model
from hwnas.network import Network
from hwnas.nn.shrink import importances
from hwnas.ops import Op
from hwnas.progress import NullProgress
from hwnas.search.atom_control import Controller
from hwnas.search.atom_projection import Limit, project
from hwnas.search.atom_training import AtomTraining
from hwnas.search.atomnas import AtomShop
from hwnas.search.baselines import multiplied
from hwnas.search.width_search import AtomRequest, make_goal, search_atoms
from hwnas.spaces import AtomArch, AtomSpace, find_space
from hwnas.train.ema import decay_at
from hwnas.train.ranks import SOLO
from hwnas.train.recipe import Atoms, Recipe
from hwnas.train.rmsprop import RMSProp


def space_of(name: str, num_classes: int | None = None) -> AtomSpace:
    space = find_space(name, num_classes=num_classes)
    assert isinstance(space, AtomSpace)
    return space


TINY = space_of("atomnas-tiny", 3)
PUBLISHED = space_of("atomnas-c")


class Device:
    """A made-up device that computes channels in blocks of 16, with some nanoseconds for every kernel."""

    def sum_of(self, ops: Sequence[Op], _: AtomSpace | None = None) -> float:
        return sum(self.of(op) for op in ops)

    def of(self, op: Op) -> float:
        blocks = math.prod(math.ceil(c / 16) * 16 for c in (op.output[0], 1 if op.depthwise else op.inputs[0][0]))
        return 1e-3 + 1e-8 * blocks * math.prod(op.output[1:]) * math.prod(op.kernel)

    def search_ends(self, network: Network) -> tuple[float, float]:
        latency = self.sum_of(network.ops)
        return latency, 1.03 * latency


def latency_of(space: AtomSpace) -> LatencyCost:
    return LatencyCost(space, Device())  # type: ignore[arg-type]


LATENCY = latency_of(TINY)

# -- prices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["macs", "params"])
def test_counts_are_those_of_the_network(name: str) -> None:
    cost = CountCost(TINY, name)
    for seed in range(5):
        arch = TINY.sample(np.random.default_rng(seed))
        assert cost.total(arch.widths) == getattr(TINY.network(arch), name)
    empty = tuple((0, 0, 0) if block.residual else (0, 1, 0) for block in TINY.blocks)
    assert cost.total(empty) == getattr(TINY.network(AtomArch(TINY.name, empty)), name)


def test_coefficients_are_the_published_ones() -> None:
    """meijieru/AtomNAS: mean cost 47,105.9 MACs, the first block 6.458, 7.523, 9.121; the least 0.409."""
    prices = CountCost(PUBLISHED, "macs").per_atom(PUBLISHED.full)
    count = sum(map(sum, PUBLISHED.full))
    mean = sum(PUBLISHED.full[b][p] * price for (b, p), price in prices.items()) / count
    assert count == 31_392
    assert mean == pytest.approx(47_105.9, abs=0.05)
    assert [prices[0, place] / mean for place in range(3)] == pytest.approx([6.458, 7.523, 9.121], abs=6e-4)
    assert min(prices.values()) / mean == pytest.approx(0.409, abs=6e-4)
    assert max(prices.values()) / mean == pytest.approx(9.121, abs=6e-4)


def test_an_atoms_latency_is_a_positive_slope() -> None:
    stairs = np.array([0.0, 8, 16, 24, 32])
    curve = np.array([0.0, 2, 2, 4, 4])
    assert slope_at(stairs, curve, 16) == pytest.approx(4 / 32)  # from 0 to 32: more than a stair to either side
    flat = np.array([0.0, 2, 2, 2, 2])
    assert slope_at(stairs, flat, 32) == pytest.approx(0.1 * 2 / 32)  # the floor
    for widths in (TINY.full, cheapest(TINY, LATENCY)):
        assert min(LATENCY.per_atom(widths).values()) > 0


def test_latency_is_of_the_net_filled_up_to_its_stairs() -> None:
    widths = tuple((37, 0, 3) for _ in TINY.blocks)
    filled = TINY.network(AtomArch(TINY.name, tuple((40, 0, 8) for _ in TINY.blocks)))
    assert LATENCY.total(widths) == Device().search_ends(filled)[0]
    assert LATENCY.estimate(TINY.full) == pytest.approx(LATENCY.total(TINY.full))


def test_a_tables_networks_hold_every_number_of_atoms_twice() -> None:
    archs = cover_archs(TINY)
    for block, place in TINY.branches():
        found = [arch.widths[block][place] for arch in archs]
        assert all(found.count(atoms) >= 2 for atoms in TINY.stairs(block, place))
    for arch in archs:
        TINY.check(arch)


# -- penalty, averages, optimizer ------------------------------------------------------------------------------------


def training_of(space: AtomSpace, cost: AtomCost, **changes: Any) -> AtomTraining:
    net = space.build(space.supernet_arch, generator=torch.Generator().manual_seed(0))
    values = Atoms(ramp=0.0, **changes)
    return AtomTraining(space, net, RMSProp(net.parameters(), lr=0.01), cost, (), values, steps=10)


@pytest.mark.parametrize(("penalty", "term"), [(1.8e-4, 5.65), (1.2e-4, 3.77), (1.0e-4, 3.14)])
def test_the_first_penalty_is_the_published_one(penalty: float, term: float) -> None:
    training = training_of(PUBLISHED, CountCost(PUBLISHED, "macs"), penalty=penalty)
    for parameter in training.net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    training.before_update(0, 0.1)
    assert training.penalty_value() == pytest.approx(term, abs=6e-3)


def test_the_penaltys_gradient_is_that_of_its_value() -> None:
    training = training_of(TINY, CountCost(TINY, "macs"), penalty=0.3)
    prices = CountCost(TINY, "macs").per_atom(TINY.full)
    mean = sum(TINY.full[b][p] * c for (b, p), c in prices.items()) / sum(map(sum, TINY.full))
    for parameter in training.net.parameters():
        torch.nn.init.normal_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    value = torch.zeros(())
    for ref, gamma in importances(training.net).items():
        value = value + 0.3 * prices[ref.block, TINY.kernels.index(int(ref.kernel[1:]))] / mean * gamma.abs().sum()
    gammas = list(importances(training.net).values())
    wanted = torch.autograd.grad(value, gammas)
    training.before_update(5, 0.1)
    assert training.penalty_value() == pytest.approx(value.item(), rel=1e-5)
    for gamma, gradient in zip(gammas, wanted, strict=True):
        torch.testing.assert_close(gamma.grad, gradient)
    touched = sum(bool(parameter.grad.any()) for parameter in training.net.parameters() if parameter.grad is not None)
    assert touched == len(gammas)


@pytest.mark.parametrize("penalty", [3e-3, 3.0])
def test_importances_that_come_to_zero_stay_there_however_large_lambda_is(penalty: float) -> None:
    """RMSProp's steps are 0.01 to 0.1 long: from side to side, nothing would ever be within the threshold of 0.001."""
    training = training_of(TINY, CountCost(TINY, "macs"), penalty=penalty, ema_decay=0.5, check_steps=1000)
    gammas = list(importances(training.net).values())
    for gamma in gammas:
        torch.nn.init.uniform_(gamma, -0.1, 0.1, generator=torch.Generator().manual_seed(1))
    for step in range(400):
        for parameter in training.net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        training.before_update(step % 9, 0.01)
        training.optimizer.step()
        training.after_update(1 + step % 9)
    assert max(float(gamma.detach().abs().max()) for gamma in gammas) < 1e-6
    pulls = [torch.where(torch.arange(len(gamma)) % 2 == 0, 50.0, -50.0) for gamma in gammas]
    for _ in range(3):  # what the loss wants more than the penalty does not comes back, on either side
        for gamma, pull in zip(gammas, pulls, strict=True):
            gamma.grad = -pull
        training.before_update(1, 0.01)
        training.optimizer.step()
        training.after_update(2)
    for gamma, pull in zip(gammas, pulls, strict=True):
        assert bool((gamma.detach() * pull > 0.05).all())


def test_lambda_does_not_drop_out_before_the_net_itself_is_within_its_budget() -> None:
    """That it is expected to be soon is not enough: without lambda all that is dying comes back."""
    training = training_of(TINY, CountCost(TINY, "macs", in_stairs=True), penalty=1e-3, threshold=0.5)
    gammas = list(importances(training.net).values())
    whole = training.cost.total(TINY.full)
    training.limits = (Limit(training.cost, 0.5 * whole),)
    for gamma in gammas:
        torch.nn.init.constant_(gamma, 0.1)  # all are expected to die
    training._control(5)
    assert training._excess < 0
    assert training._penalty(5) > 0
    training.limits = (Limit(training.cost, whole),)
    training._control(6)
    assert training._penalty(6) == 0.0


def test_the_projections_share_is_of_the_net_as_it_is_deployed() -> None:
    """One atom over a stair in each branch costs the whole next stair."""
    training = training_of(TINY, CountCost(TINY, "macs", in_stairs=True), threshold=0.5)
    for ref, gamma in importances(training.net).items():
        block, place = training._branch(ref)
        keep = TINY.stairs(block, place)[2] + 1
        gamma.detach().copy_(torch.where(torch.arange(len(gamma)) < keep, 1.0, 0.0))
    fits = tuple(tuple(TINY.stairs(b, p)[2] for p in range(len(row))) for b, row in enumerate(TINY.full))
    training.limits = (Limit(training.cost, training.cost.total(fits)),)
    training._land(5)
    landing = training.landing
    assert landing is not None
    more = tuple(tuple(TINY.stairs(b, p)[3] for p in range(len(row))) for b, row in enumerate(TINY.full))
    assert landing.controlled == training.cost.total(more)
    assert training.cost.total(training.widths) <= training.limits[0].most
    assert landing.shares()["projection"] > 0.02


def test_the_sum_as_normaliser_is_the_mean_over_the_number_of_atoms() -> None:
    by_mean, by_sum = (training_of(TINY, CountCost(TINY, "macs"), normaliser=name)._prices for name in ("mean", "sum"))
    assert np.array(by_mean) / np.array(by_sum) == pytest.approx(TINY.supernet_arch.atoms)


def test_averages_forget_as_the_published_code_does() -> None:
    """An importance that is 1 until epoch 25 and 0 from there is dead in epoch 54, not 246 (facts on trap 2)."""
    per_epoch, value, step = 626, 1.0, 25 * 626
    while value > 1e-3:
        step += 1
        value *= decay_at(0.99995, step)
    assert math.ceil(step / per_epoch) == 54
    assert 25 + math.log(1e-3) / math.log(0.99995) / per_epoch == pytest.approx(245.7, abs=1)


def test_rmsprop_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = RMSProp([weight], lr=0.1, weight_decay=0.5)
    value, square, buffer = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for gradient in ([0.3, 0.1], [-0.2, 0.4]):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        g = np.array(gradient) + 0.5 * value
        square = 0.9 * square + 0.1 * g * g
        buffer = 0.9 * buffer + g / np.sqrt(square + 1e-3)
        value = value - 0.1 * buffer
    assert weight.detach().numpy() == pytest.approx(value, rel=1e-5)


# -- controller and projection ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("slowness", [0.3, 1.0, 5.0])
def test_the_controller_brings_a_net_onto_its_course(slowness: float) -> None:
    """A crowd of importances that fall as fast as lambda pushes, each held back by a use of its own."""
    rng = np.random.default_rng(0)
    use, alpha = rng.lognormal(sigma=1.0, size=2000), np.ones(2000)
    controller = Controller(1e-4, 0.05, 0.5)
    excess = 1.0
    for step in range(1000):
        progress = step / 1000
        if progress >= 0.05:
            controller.update(progress, excess, 1 / 1000)
        push = controller.at(progress, excess) * 50 / slowness
        alpha = np.maximum(0.0, np.minimum(1.0, alpha - push + 0.002 * use * (alpha > 1e-3)))
        excess = ((alpha > 1e-3).mean() - 0.4) / 0.6
        if step == 550:
            break
    assert -0.02 < excess < 0.1


def importance(seed: int) -> dict[tuple[int, int], np.ndarray]:
    rng = np.random.default_rng(seed)
    return {(b, p): rng.exponential(size=TINY.full[b][p]) * rng.choice([0.1, 1.0]) for b, p in TINY.branches()}


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.1, 0.9))
def test_projection_meets_the_budget_with_the_least_worth(seed: int, share: float) -> None:
    cost, values = CountCost(TINY, "macs"), importance(seed)
    limit = Limit(cost, share * cost.total(TINY.full))
    found = project(TINY, values, [limit])
    assert found.met
    assert limit.most - max(cost.per_atom(TINY.full).values()) <= cost.total(found.widths) <= limit.most
    prices = cost.per_atom(TINY.full)
    gone, kept = [], []
    for (b, p), all_values in values.items():
        order = np.sort(all_values) / prices[b, p]
        assert found.widths[b][p] == found.keep[b, p]
        gone += order[: len(order) - found.keep[b, p]].tolist()
        if TINY.blocks[b].residual or sum(found.widths[b]) > 1:  # whose last atom stays, worthy or not
            kept += order[len(order) - found.keep[b, p] :].tolist()
    assert max(gone) <= min(kept)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.15, 0.9))
def test_projection_ends_on_stairs_within_a_latency_budget(seed: int, share: float) -> None:
    values = {
        branch: all_values[: len(all_values) * (seed % 3 + 1) // 3] for branch, all_values in importance(seed).items()
    }
    limit = Limit(LATENCY, share * LATENCY.total(TINY.full))
    found = project(TINY, values, [limit])
    assert found.met
    assert limit.met(found.widths)
    arch = AtomArch(TINY.name, found.widths)
    TINY.check(arch)
    assert TINY.aligned(arch) == arch
    assert all(found.keep[b, p] <= found.widths[b][p] for b, p in TINY.branches())


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.15, 0.9), equal=st.booleans())
def test_projection_in_stairs_uses_a_budget_of_macs_up(seed: int, share: float, equal: bool) -> None:
    cost, values = CountCost(TINY, "macs", in_stairs=True), importance(seed)
    limit = Limit(cost, share * cost.total(TINY.full))
    found = project(TINY, values, [limit], equal)
    assert found.met
    assert limit.met(found.widths)
    assert found.widths == tuple(
        tuple(found.keep[b, p] for p in range(len(row))) for b, row in enumerate(TINY.full)
    )  # there were atoms for all stairs
    for (b, p), stairs in ((branch, TINY.stairs(*branch)) for branch in TINY.branches()):
        now = found.widths[b][p]
        assert now in stairs
        if now < stairs[-1]:  # not one step up is left
            row = (*found.widths[b][:p], stairs[stairs.index(now) + 1], *found.widths[b][p + 1 :])
            assert not limit.met((*found.widths[:b], row, *found.widths[b + 1 :]))


def test_a_block_that_changes_the_shape_is_never_emptied() -> None:
    for cost in (CountCost(TINY, "macs"), LATENCY):
        limit = Limit(cost, cost.upper(cheapest(TINY, cost)) * 1.0001)
        found = project(TINY, importance(3), [limit])
        assert all(any(row) for row, block in zip(found.widths, TINY.blocks, strict=True) if not block.residual)
        assert not project(TINY, importance(3), [Limit(cost, 0.0)]).met


def test_the_width_multiplier_is_as_wide_as_the_budget_allows() -> None:
    limit = Limit(CountCost(TINY, "macs"), 3_000_000)
    widths = multiplied(TINY, [limit])
    shares = [
        atoms / full
        for row, whole in zip(widths, TINY.full, strict=True)
        for atoms, full in zip(row, whole, strict=True)
    ]
    assert max(shares) - min(shares) < 0.02
    assert 0.97 * limit.most < limit.cost.total(widths) <= limit.most


@pytest.mark.parametrize("cost", [CountCost(TINY, "macs", in_stairs=True), LATENCY], ids=["macs", "latency"])
def test_in_stairs_the_width_multiplier_uses_what_its_coarse_steps_leave(cost: AtomCost) -> None:
    for share in (0.3, 0.5, 0.7):
        limit = Limit(cost, share * cost.upper(TINY.full))
        widths = multiplied(TINY, [limit])
        assert TINY.aligned(AtomArch(TINY.name, widths)).widths == widths
        assert 0.98 * limit.most < cost.upper(widths) <= limit.most


# -- whole searches --------------------------------------------------------------------------------------------------

RECIPE = Recipe.model_validate(
    {
        "supernet": {"steps": 24, "batch_size": 8, "optimizer": "rmsprop", "lr": 0.01},
        "scoring": {"recalibrate_images": 16, "val_images": 6, "batch_size": 8},
        "atoms": {"penalty": 3e-3, "ema_decay": 0.5, "check_steps": 3, "control_steps": 1, "ramp": 0.1, "delta": 0},
        "finetune": {"steps": 0, "batch_size": 8, "optimizer": "adamw", "lr": 1e-3},
    }
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("squares"), train=12, test=3)


def request(data: Path, out: Path, method: str = "atomnas", cost: str = "latency", share: float = 0.5) -> AtomRequest:
    counts = {name: CountCost(TINY, name, in_stairs=True) for name in ("macs", "params")}
    costs: dict[str, AtomCost] = {"latency": LATENCY, **counts}
    limit = share * costs[cost].total(TINY.full)
    budgets = [[Budget(cost, limit, f"{share:.0%}")]] if share else [[]]
    return AtomRequest(TINY, f"folder:{data}", budgets, costs, RECIPE, out, method=method)


@pytest.mark.parametrize(
    ("method", "cost"),
    [("atomnas", "latency"), ("atomnas", "params"), ("atomnas-equal", "macs"), ("width", "latency")],
)
def test_a_search_ends_within_its_budget_with_a_net(data: Path, tmp_path: Path, method: str, cost: str) -> None:
    asked = request(data, tmp_path / "run", method, cost)
    outcome = search_atoms(asked, NullProgress())
    (result,) = outcome.results
    limit = result["budgets"][0]["limit"]
    loaded = load_model(str(tmp_path / "run" / "nets" / result["net"]))
    used = {
        "latency": Device().search_ends(loaded.network)[1],
        "macs": loaded.network.macs,
        "params": loaded.network.params,
    }
    assert 0.7 * limit < used[cost] <= limit
    assert result["budget_used"] == pytest.approx(used[cost] / limit)
    module = loaded.module()
    assert module is not None
    images = np.random.default_rng(0).standard_normal((2, 3, 28, 28), dtype=np.float32)
    assert loaded.onnx_path is not None
    assert parity(module, loaded.onnx_path, images).max_rel_diff < 1e-3
    assert 0 <= result["accuracy"] <= 1
    if method != "width":
        assert sum(result["reduction"].values()) == pytest.approx(1)
        assert result["landing"]["step"] == round(0.6 * 24)
    began = time.monotonic()
    assert search_atoms(asked, NullProgress()).results == outcome.results
    assert time.monotonic() - began < 10


def test_without_a_budget_the_penalty_stays(data: Path, tmp_path: Path) -> None:
    (result,) = search_atoms(request(data, tmp_path / "run", share=0.0), NullProgress()).results
    assert result["net"] == "unlimited"
    assert result["reduction"] is None
    rows = [json.loads(line) for line in (tmp_path / "run/nets/unlimited/atoms.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 24
    assert rows[-1]["penalty"] == RECIPE.atoms.penalty


def test_a_budget_that_nothing_meets_is_refused_at_once(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ClaimError, match=r"give .* ms or more, the upper end of the cheapest"):
        search_atoms(request(data, tmp_path / "run", share=1e-3), NullProgress())
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_penalty_is_refused(data: Path, tmp_path: Path) -> None:
    search_atoms(request(data, tmp_path / "run", "width"), NullProgress())
    with pytest.raises(HwnasError, match="run of another search: method"):
        search_atoms(request(data, tmp_path / "run", "atomnas"), NullProgress())


def test_a_rank_with_other_prices_refuses_to_train(data: Path, tmp_path: Path) -> None:
    asked = request(data, tmp_path / "run", cost="macs")
    shop, goal = AtomShop(asked, NullProgress(), SOLO), make_goal(asked, asked.budgets[0])
    assert shop.goal({"goal": 0, "key": goal.key}).name == goal.name
    dearer = replace(asked, costs={**asked.costs, "macs": CountCost(TINY, "params")})
    with pytest.raises(HwnasError, match="have different prices"):
        AtomShop(dearer, NullProgress(), SOLO).goal({"goal": 0, "key": goal.key})


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_atoms_child as here
from hwnas.train import loop
loop.CHECKPOINT_INTERVAL_S = 0.0
loop.LOG_STEPS = 1
here.search_atoms(here.request(Path(sys.argv[2]), Path(sys.argv[3])), here.NullProgress())
"""


@pytest.mark.slow
def test_a_search_killed_twice_finds_the_same_net(data: Path, tmp_path: Path) -> None:
    (tmp_path / "test_atoms_child.py").write_text(Path(__file__).read_text())
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"

    def start() -> subprocess.Popen[bytes]:
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        arguments = [sys.executable, "-c", CHILD, str(tmp_path), str(data), str(killed)]
        return subprocess.Popen(arguments, env=env, stderr=subprocess.DEVNULL)

    for step in (8, 17):  # before the net is projected, and behind
        child = start()
        while not (paths := sorted(killed.glob("checkpoints/*.safetensors"))) or int(paths[-1].stem[-9:]) < step:
            assert child.poll() is None
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert not (killed / "results.json").exists()
    child = start()
    search_atoms(request(data, undisturbed), NullProgress())
    assert child.wait(240) == 0
    for name in ("arch.json", "weights.safetensors", "atoms.jsonl"):
        wanted, found = (run / "nets" / "latency-50pct" / name for run in (undisturbed, killed))
        assert wanted.read_bytes() == found.read_bytes()
