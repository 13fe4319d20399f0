"""Searching by gates: penalty and controller, whole searches of every method within their budgets, kills survived."""

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
from tiny_images import write_dataset

from hwnas.atom_costs import cheapest
from hwnas.budget import Budget, parse_budget
from hwnas.errors import ClaimError, HwnasError
from hwnas.export import parity, preparation_of
from hwnas.gate_costs import GateCount, gate_costs
from hwnas.models import load_model
from hwnas.network import Network
from hwnas.nn.gates import GatedNet
from hwnas.ops import Op
from hwnas.progress import NullProgress
from hwnas.search.atom_control import Landing
from hwnas.search.atom_projection import Limit, project
from hwnas.search.baselines import multiplied, random_arch
from hwnas.search.figs_training import FigsTraining
from hwnas.search.gate_training import Died, GateTraining
from hwnas.search.morphnet import MorphNetTraining
from hwnas.search.width_search import AtomRequest, search_atoms
from hwnas.spaces import GateSpace, find_space
from hwnas.train.optimizers import make_optimizer, set_rates
from hwnas.train.recipe import Gates, Phase, Recipe, load_recipe


class Device:
    """A made-up device that computes channels in blocks of 16, with a microsecond for every kernel."""

    def each_ms(self, ops: Sequence[Op], _: GateSpace) -> list[float | None]:
        return [self.of(op) for op in ops]

    def of(self, op: Op) -> float:
        blocks = math.prod(math.ceil(c / 16) * 16 for c in (op.output[0], 1 if op.depthwise else op.inputs[0][0]))
        return 1e-3 + 1e-8 * blocks * math.prod(op.output[1:]) * math.prod(op.kernel)

    def search_ends(self, network: Network) -> tuple[float, float]:
        latency = sum(self.of(op) for op in network.ops)
        return latency, 1.03 * latency


def space_of(name: str = "figs-resnet50-tiny") -> GateSpace:
    space = find_space(name, num_classes=3)
    assert isinstance(space, GateSpace)
    return space


SPACE = space_of()
COSTS = gate_costs(SPACE, Device())  # type: ignore[arg-type]

# -- the penalty -----------------------------------------------------------------------------------------------------


def trainer(
    kind: type[GateTraining] = FigsTraining, *, limits: Sequence[Limit] = (), steps: int = 20, **options: Any
) -> Any:
    plain = SPACE.supernet(generator=torch.Generator().manual_seed(0))
    net = GatedNet(plain, SPACE.input_shape, readable=SPACE.readable, tau=options.get("tau", 1e-3))
    optimizer = make_optimizer(net.net, Phase(steps=steps, batch_size=2, optimizer="adamw", lr=1e-3))
    return kind(SPACE, net, optimizer, COSTS["params"], tuple(limits), Gates(**options), steps)


@pytest.mark.parametrize("form", ["expected", "sampled"])
def test_the_penaltys_gradient_is_that_of_finite_differences(form: str) -> None:
    training = trainer(form=form, penalty=2.0, tau=0.7, lr=1.0)
    net, cost = training.net, training.cost
    net.logits.data.copy_(torch.linspace(-2, 3, len(net.logits)))
    net.set_masks(None)
    net.sample(torch.Generator().manual_seed(3))
    noise = net._noisy - net.logits.detach()
    net.logits.grad = torch.zeros_like(net.logits)
    training.before_update(0, 1.0)
    group_of = SPACE.channels.group_of()

    def penalty(logits: np.ndarray) -> float:
        values = logits if form == "expected" else (logits + noise.double().numpy()) / 0.7
        sums = np.bincount(group_of, 1 / (1 + np.exp(-values)), minlength=len(SPACE.groups))
        return 2.0 * float(cost.smooth(sums)) / cost.total(SPACE.full)

    logits = net.logits.detach().double().numpy()
    for place in (0, 5, 300, 500, 879):
        step = np.zeros_like(logits)
        step[place] = 1e-4
        difference = (penalty(logits + step) - penalty(logits - step)) / 2e-4
        assert float(net.logits.grad[place]) == pytest.approx(difference, rel=1e-3, abs=1e-9)


def test_lambda_answers_to_the_net_as_it_would_be_cut_once_the_course_is_over() -> None:
    """Stairs that are filled up cost more than the expected channels."""
    cost = gate_costs(SPACE, None, stairs=True)["params"]
    training = trainer(limits=[limit := Limit(cost, 0.5 * cost.upper(SPACE.full))], steps=400, ramp=0.2)
    training.net.logits.data.fill_(0.3)
    expected = limit.excess(float(cost.smooth(training.sums())))
    cut = limit.excess(cost.estimate(cost.deployed(training.wanted())))
    assert cut > expected + 0.02
    assert training._over(0.1) == pytest.approx(expected)
    assert training._over(0.9) == pytest.approx(cut)
    assert expected < training._over(0.4) < cut


def test_without_a_task_the_controller_brings_the_cost_onto_its_course() -> None:
    limit = Limit(COSTS["params"], 0.5 * COSTS["params"].upper(SPACE.full))
    training = trainer(limits=[limit], steps=400, lr=100.0, ramp=0.05)
    net = training.net
    for step in range(400):
        net.zero_grad()
        net.logits.grad = 1e-5 * torch.randn(len(net.logits), generator=torch.Generator().manual_seed(step))
        for group in training.optimizer.param_groups:
            group["lr"] = 1e-3
        training.before_update(step, 1e-3)
        training.optimizer.step()
        training.after_update(step + 1)
    assert abs(training._excess) < 0.15
    widths, keep = training.land()
    assert 0.97 * limit.most <= COSTS["params"].upper(widths) <= limit.most
    assert int(keep.sum()) == sum(row[0] for row in widths)
    assert training.landing.shares()["controller"] > 0.7


def test_a_penalty_that_kills_everything_is_said_so_and_channels_that_are_needed_come_back() -> None:
    strong = trainer(penalty=1e6, lr=1.0)
    strong.net.logits.data.fill_(-9.0)
    with pytest.raises(Died, match="too strong; lower gates") as died:
        strong.after_update(10)
    assert died.value.step == 0  # there never was a net
    strong.net.logits.data.fill_(1.0)
    strong.after_update(20)
    strong.net.logits.data.fill_(-9.0)
    strong.after_update(25)  # not looked at
    with pytest.raises(Died, match="died by step 30") as died:
        strong.after_update(30)
    assert died.value.step == 20
    assert (died.value.tensors["model/logits"] == 1.0).all()
    limited = trainer(limits=[Limit(COSTS["params"], 0.5 * COSTS["params"].upper(SPACE.full))])
    limited.net.logits.data.fill_(-9.0)
    widths, _ = limited.land()
    assert SPACE.viable(SPACE.empty_of(widths))
    assert COSTS["params"].upper(widths) <= limited.limits[0].most


@pytest.mark.parametrize("kind", [FigsTraining, MorphNetTraining])
@pytest.mark.parametrize("share", [None, 0.5])
def test_what_is_no_number_is_said_in_a_line(kind: type[GateTraining], share: float | None) -> None:
    limits = [Limit(COSTS["params"], share * COSTS["params"].upper(SPACE.full))] if share else []
    training = trainer(kind, limits=limits)
    for parameter in training.net.parameters():
        parameter.data.fill_(math.nan)
    with pytest.raises(HwnasError, match="not a number after step 3: lower lr"):
        training.after_update(3)


@pytest.mark.parametrize(
    ("name", "cost_name", "times"),
    [
        ("figs-resnet50-tiny", "latency", 1.0),
        ("figs-resnet50-tiny", "latency", 1.3),
        ("figs-oneshot-tiny", "params", 1.05),
    ],
)
def test_the_least_budgets_are_met(name: str, cost_name: str, times: float) -> None:
    """Worth alone may lead a projection to a net that is a little too large; the cheapest one takes its place."""
    space = space_of(name)
    cost = gate_costs(space, Device(), stairs=True)[cost_name]  # type: ignore[arg-type]
    limit = Limit(cost, times * cost.upper(cost.deployed(cheapest(space, cost))))
    plain = space.supernet(generator=torch.Generator().manual_seed(0))
    net = GatedNet(plain, space.input_shape, readable=space.readable)
    optimizer = make_optimizer(net.net, Phase(steps=20, batch_size=2, optimizer="adamw", lr=1e-3))
    for seed in range(2):
        net.logits.data.normal_(-2, 2, generator=torch.Generator().manual_seed(seed))
        training = FigsTraining(space, net, optimizer, cost, (limit,), Gates(), 20)
        widths, _ = training.land()
        assert limit.met(widths)
        optimizer.param_groups.pop()


class Patchy(Device):
    """A table that lacks operators of small nets."""

    path = "patchy.lut"

    def search_ends(self, network: Network) -> tuple[float, float]:
        if network.macs < 0.1 * SPACE.network(SPACE.supernet_arch).macs:
            raise HwnasError("lacks operators")
        return super().search_ends(network)


def test_a_net_of_which_nobody_knows_the_latency_meets_no_budget_and_ends_no_search() -> None:
    cost = gate_costs(SPACE, Patchy(), stairs=True)["latency"]  # type: ignore[arg-type]
    small = tuple((8,) for _ in SPACE.full)
    assert not Limit(cost, 1e9).met(small)
    assert cost.ends(small) is None
    training = trainer(limits=[limit := Limit(cost, 0.9 * cost.upper(SPACE.full))])
    training.net.logits.data.fill_(-9.0)  # down to a net that is not known
    widths, _ = training.land()
    assert limit.met(widths)
    assert all(map(math.isfinite, training.landing.shares().values()))
    with pytest.raises(HwnasError, match="lacks operators"):
        gate_costs(SPACE, Nothing(), stairs=True)["latency"].total(SPACE.full)  # type: ignore[arg-type]


class Nothing(Device):
    """A table of another space."""

    path = "nothing.lut"

    def search_ends(self, network: Network) -> tuple[float, float]:
        raise HwnasError("lacks operators")


def test_nets_that_look_at_their_weights_while_they_are_made_are_read() -> None:
    assert len(space_of("torchvision:regnet_x_400mf").groups) == 5
    with pytest.raises(HwnasError, match=r"no channels that could go: conv_proj: reshape works on"):
        _ = find_space("torchvision:vit_b_16", image_size=224).groups


def test_a_width_multiplier_that_cannot_be_small_enough_is_refused_with_what_it_could_be() -> None:
    space = space_of("figs-fbnet-tiny")
    cost = gate_costs(space, None, stairs=True)["params"]
    least = cost.upper(cheapest(space, cost))
    with pytest.raises(
        ClaimError, match=r"no width multiplier meets the budget for params: give [\d.]+k or more"
    ) as no:
        multiplied(space, [Limit(cost, 1.1 * least)])
    (budget,) = parse_budget("params", str(no.value).split("give ")[1].split(" or")[0])
    assert Limit(cost, budget.value).met(multiplied(space, [Limit(cost, budget.value)]))


def test_what_the_projection_takes_back_is_said() -> None:
    assert Landing(1, 100.0, 40.0, 50.0).shares() == {"controller": 1.2, "projection": pytest.approx(-0.2)}


def test_morphnet_penalises_the_scales_of_every_batchnorm() -> None:
    training = trainer(MorphNetTraining, penalty=1.0)
    weights = [weight for weight, *_ in training._norms]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    training.before_update(0, 1e-3)
    assert all(bool((weight.grad > 0).all()) for weight in weights)  # the scales begin at one
    training.net.net.blocks[0].main[1].weight.data[:5] = 0.001
    worth = training.worth()
    group = next(group for group in SPACE.groups if group.name == "blocks.0.main.0")
    assert (worth[group.first : group.first + 5] < 0.01).all()
    assert training.wanted()[SPACE.groups.index(group)] == (group.size - 5,)
    bare = find_space("torchvision:squeezenet1_1", num_classes=3)
    assert isinstance(bare, GateSpace)
    net = GatedNet(bare.supernet(), bare.input_shape, readable=bare.readable)
    optimizer = make_optimizer(net.net, Phase(steps=1, batch_size=2, optimizer="adamw", lr=1e-3))
    with pytest.raises(HwnasError, match="morphnet needs a BatchNorm behind every layer"):
        MorphNetTraining(bare, net, optimizer, GateCount(bare, "params"), (), Gates(), 1)


def test_tensorflows_epsilon_is_a_warm_up() -> None:
    """facts.md, trap 6: 100 steps at a gradient of 1e-3 move -0.033 where torch's Adam moves -0.160 (lr 1.6)."""
    for tensorflow, wanted in ((True, -0.033), (False, -0.160)):
        value = torch.nn.Parameter(torch.zeros(1))
        phase = Phase(
            steps=10**6, batch_size=2, optimizer="adam", lr=1.6, eps=1.0, tf_epsilon=tensorflow,
            schedule="exponential", decay=1.0,
        )  # fmt: skip
        optimizer = torch.optim.Adam([value], lr=1.6, eps=1.0)
        for step in range(100):
            value.grad = torch.full((1,), 1e-3)
            set_rates(optimizer, phase, step)
            optimizer.step()
        assert float(value.detach()) == pytest.approx(wanted, abs=6e-4)


def test_the_logits_have_an_epsilon_of_their_own() -> None:
    """At the weights' 1e-8 Adam would take lambda's size out of their steps (facts.md, trap 6)."""
    phase = Phase(steps=20, batch_size=2, optimizer="adam", lr=1e-3, eps=1e-8, tf_epsilon=True)
    net = GatedNet(SPACE.supernet(generator=torch.Generator().manual_seed(0)), SPACE.input_shape,
                   readable=SPACE.readable)  # fmt: skip
    optimizer = make_optimizer(net.net, phase)
    FigsTraining(SPACE, net, optimizer, COSTS["params"], (), Gates(), 20)
    set_rates(optimizer, phase, 999)
    weights, logits = optimizer.param_groups[0], optimizer.param_groups[-1]
    assert logits["params"] == [net.logits]
    assert logits["eps"] == pytest.approx(1e8 * weights["eps"])
    assert weights["eps"] == pytest.approx(1e-8 / math.sqrt(1 - 0.999**1000))


@pytest.mark.parametrize("start", [math.nan, 20.0, -200.0])
def test_gates_that_could_never_move_are_refused(start: float) -> None:
    with pytest.raises(ValueError, match="start"):
        Gates(start=start)


def test_recipes_that_ship_are_recipes_of_gates() -> None:
    paper = load_recipe("figs-paper")
    assert (paper.gates.tau, paper.gates.start, paper.gates.lr) == (1e-3, 2.5, None)
    assert load_recipe("figs").gates.backward_tau is not None


# -- whole searches --------------------------------------------------------------------------------------------------


def recipe() -> Recipe:
    phase = {"batch_size": 8, "optimizer": "adamw", "lr": 2e-3}
    return Recipe.model_validate(
        {
            "supernet": {**phase, "steps": 20},
            "finetune": {**phase, "steps": 10},
            "scoring": {"recalibrate_images": 20, "val_images": 12, "batch_size": 20},
            "gates": {"backward_tau": 1.0, "lr": 100.0, "control_steps": 5, "random_nets": 2, "penalty": 0.01},
        }
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("figs") / "data", train=20, val=4)


def request(data: Path, out: Path, method: str = "figs", *budgets: tuple[str, float]) -> AtomRequest:
    limits = [Budget(cost, share * COSTS[cost].total(SPACE.full), f"{share:.0%}") for cost, share in budgets]
    return AtomRequest(
        space=SPACE, data=f"folder:{data}", budgets=[limits], costs=COSTS, recipe=recipe(), out=out, method=method,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "cost", "share"),
    [("figs", "latency", 0.5), ("figs", "bytes", 0.5), ("morphnet", "macs", 0.5), ("width", "latency", 0.5),
     ("random", "params", 0.5)],
)  # fmt: skip
def test_a_search_ends_within_its_budget_with_a_net(
    data: Path, tmp_path: Path, method: str, cost: str, share: float
) -> None:
    outcome = search_atoms(request(data, tmp_path / "run", method, (cost, share)), NullProgress())
    (result,) = outcome.results
    (budget,) = result["budgets"]
    spent = result["high_ms"] if cost == "latency" else result[cost]
    assert 0.8 * budget["limit"] < spent <= budget["limit"]
    folder = tmp_path / "run" / "nets" / result["net"]
    loaded = load_model(str(folder))
    assert (loaded.network.macs, loaded.network.params) == (result["macs"], result["params"])
    images = np.random.default_rng(0).normal(size=(2, *SPACE.input_shape)).astype(np.float32)
    module = loaded.module()
    assert module is not None
    assert parity(module, folder / "model.onnx", images).max_rel_diff < 1e-4
    if method in ("figs", "morphnet"):
        assert sum(result["reduction"].values()) == pytest.approx(1)
    if method == "random":  # the best of several by validation
        assert len(result["search_accuracies"]) == recipe().gates.random_nets > 1
        assert result["search_accuracy"] == max(result["search_accuracies"])
    said = {key: json.loads(value) for key, value in preparation_of(folder / "model.onnx").items()}
    assert said["hwnas.classes"] == json.loads((tmp_path / "run/data.json").read_text())["classes"]
    assert said["hwnas.mean"] == result["normalisation"]["mean"]
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
    again = search_atoms(request(data, tmp_path / "run", method, (cost, share)), NullProgress())
    assert again.results == outcome.results


def test_without_a_budget_the_penalty_stays_and_an_impossible_budget_is_found_at_once(
    data: Path, tmp_path: Path
) -> None:
    (result,) = search_atoms(request(data, tmp_path / "free"), NullProgress()).results
    assert "channels tied: " in (tmp_path / "free/channels.txt").read_text()
    assert result["budget_used"] is None
    rows = [json.loads(line) for line in (tmp_path / "free/nets/unlimited/gates.jsonl").read_text().splitlines()]
    assert {row["penalty"] for row in rows} == {0.01}
    assert "macs" in rows[0]
    by_bytes = request(data, tmp_path / "bytes")
    changed = by_bytes.recipe.model_copy(update={"gates": by_bytes.recipe.gates.model_copy(update={"cost": "bytes"})})
    search_atoms(replace(by_bytes, recipe=changed), NullProgress())
    assert '"bytes"' in (tmp_path / "bytes/nets/unlimited/gates.jsonl").read_text()
    with pytest.raises(ClaimError, match="no architecture of figs-resnet50-tiny meets params"):
        search_atoms(request(data, tmp_path / "none", "figs", ("params", 1e-5)), NullProgress())
    assert not (tmp_path / "none").exists()


def test_random_nets_are_within_the_limits_and_differ() -> None:
    limit = Limit(COSTS["latency"], 0.4 * COSTS["latency"].upper(SPACE.full))
    found = [random_arch(SPACE, [limit], 0, number) for number in range(4)]
    assert len(set(found)) >= 3  # two of them drew the same operators
    assert found == [random_arch(SPACE, [limit], 0, number) for number in range(4)]
    for widths in found:
        assert limit.met(widths)
        assert SPACE.viable(SPACE.empty_of(widths))


CHILD = """
import sys, time
sys.path.insert(0, sys.argv[1])
import hwnas.train.loop as loop
import hwnas.train.checkpoint as checkpoint
loop.CHECKPOINT_INTERVAL_S, loop.LOG_STEPS = 0.0, 1
real = checkpoint.write_atomically
def slow(path, data):
    real(path, data)
    if path.suffix == ".safetensors":
        time.sleep(0.05)
checkpoint.write_atomically = slow
from pathlib import Path
import test_figs_child as tests
from hwnas.progress import NullProgress
from hwnas.search.width_search import search_atoms
search_atoms(tests.request(Path(sys.argv[2]), Path(sys.argv[3]), "figs", ("latency", 0.5)), NullProgress())
"""


def test_a_search_killed_in_both_phases_finds_the_same_net(data: Path, tmp_path: Path) -> None:
    (tmp_path / "test_figs_child.py").write_text(Path(__file__).read_text())
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"

    def start() -> subprocess.Popen[bytes]:
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        arguments = [sys.executable, "-c", CHILD, str(tmp_path), str(data), str(killed)]
        return subprocess.Popen(arguments, env=env, stderr=subprocess.DEVNULL)

    for phase, step in (("figs-????????????????-?????????", 8), ("figs-*-retrain-?????????", 4)):
        child = start()
        pattern = f"checkpoints/{phase}.safetensors"
        while not (paths := sorted(killed.glob(pattern))) or int(paths[-1].stem[-9:]) < step:
            assert child.poll() is None
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert not (killed / "results.json").exists()
    for out in (killed, undisturbed):
        search_atoms(request(data, out, "figs", ("latency", 0.5)), NullProgress())
    for name in ("arch.json", "weights.safetensors", "gates.jsonl"):
        wanted, found = (run / "nets" / "latency-50pct" / name for run in (undisturbed, killed))
        assert wanted.read_bytes() == found.read_bytes()


def test_what_a_projection_takes_back_is_still_a_net() -> None:
    """A layer that comes back without what it needs would hand on a constant."""
    space = find_space("figs-oneshot-tiny")
    assert isinstance(space, GateSpace)
    cost = gate_costs(space, None, stairs=True)["params"]
    rng = np.random.default_rng(1)
    few = {(n, 0): rng.random(min(8, row[0])) * rng.random() for n, row in enumerate(space.full)}
    found = project(space, few, [Limit(cost, 5500)])
    assert found.met
    assert space.viable(space.empty_of(found.widths))
    assert cost.upper(found.widths) <= 5500
