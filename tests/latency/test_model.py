"""Prediction: additive, honest about what is missing, and the same for a network and for its space's prices."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from quick import kernels_of, quick_profile, tiny_network

from hwnas.errors import HwnasError
from hwnas.latency.commands import profile_command
from hwnas.latency.lowering import lowering
from hwnas.latency.model import LatencyModel
from hwnas.latency.plan import calibration_archs, entry_name
from hwnas.latency.table import LatencyTable
from hwnas.latency.writer import TableWriter
from hwnas.network import Network
from hwnas.ops import Op
from hwnas.spaces import Space, get_space

DESCRIBE = {"runtime": "onnxruntime", "runtime_version": "1.0", "device": "A CPU", "cores": 2, "threads": 1}
TINY = get_space("proxyless-tiny")
MakeModel = Callable[..., LatencyModel]


def true_ms(op: Op) -> float:
    """What an operator costs on a device that we make up."""
    return 0.01 + op.macs / 5e7


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """A model of a table that holds `ops` and networks, on a device of which everything is known.

    A network takes 0.3 ms and 0.9 times its operators, or as much of them as `factors` has for its space.
    """

    def make(
        ops: list[Op],
        networks: list[Network],
        *,
        name: str = "t.lut",
        batch_size: int = 1,
        profile_name: str = "cpu",
        block: int = 0,
        factors: Mapping[str, float] | None = None,
    ) -> LatencyModel:
        rng = np.random.default_rng(0)
        profile = quick_profile().model_copy(update={"batch_size": batch_size, "name": profile_name})
        with TableWriter.create(tmp_path / name, profile, {**DESCRIBE, "channel_block": block}) as table:
            table._db.execute("BEGIN")  # all at once: the test has no use for durable rows
            session = table.start_session({})
            for op in ops:
                table.add_entry("operator", op.key, {})
                for visit in range(3):
                    table.add_visit(session, "operator", op.key, visit, 1, [true_ms(op)] * 2)
            for index, network in enumerate(networks):
                entry = entry_name(f"{network.space} #{index}", network)
                table.add_entry("network", entry, network.to_json())
                kernels = lowering(table.header)(network)
                factor = (factors or {}).get(network.space, 0.9)
                whole = (factor * sum(map(true_ms, kernels)) + 0.3) * (1 + 0.01 * rng.standard_normal())
                table.add_visit(session, "network", entry, 0, 1, [whole])
            table._db.execute("COMMIT")
            return LatencyModel(table)

    return make


def calibration_nets(space: Space, count: int = 12) -> list[Network]:
    return [space.network(arch) for arch in calibration_archs(space, count)]


@pytest.fixture
def model(make_model: MakeModel) -> LatencyModel:
    return make_model(kernels_of(TINY), calibration_nets(TINY))


def test_a_model_corrects_operators_for_itself_not_in_the_table(model: LatencyModel) -> None:
    with LatencyTable.open(model.path) as table:
        first, second, plain = (LatencyModel(table, calibrate_on=chosen) for chosen in (None, None, lambda _: False))
        assert any(first.operators[key] != plain.operators[key] for key in plain.operators)
        assert first.operators == second.operators == model.operators
        assert plain.operators == table.operators()
        assert all(plain.operators[op.key].latency_ms == pytest.approx(true_ms(op)) for op in kernels_of(TINY))


def test_one_group_of_networks_is_all_there_is_to_calibrate_on(model: LatencyModel) -> None:
    """What operators add up to by themselves is calibrated as networks of their input shape are."""
    pooled = model.calibrations.pooled
    assert pooled is model.calibration(TINY)
    ops = kernels_of(TINY)[:3]
    summed = sum(model.operators[op.key].latency_ms for op in ops)
    assert model.sum_of(ops, TINY) == pytest.approx(pooled.slope * summed)


def test_a_prediction_is_the_calibrated_sum_of_its_operators(model: LatencyModel) -> None:
    network = TINY.network(TINY.sample(np.random.default_rng(1)))
    found = model.predict(network)
    assert found.latency_ms is not None
    assert found.low_ms is not None
    assert found.high_ms is not None
    calibration = model.calibration(network)
    raw = sum(map(true_ms, network.ops))
    corrected = sum(true_ms(op) * calibration.factors.get(op.key, 1.0) for op in network.ops)
    straight = calibration.slope * corrected + calibration.offset_ms
    assert found.latency_ms == pytest.approx(calibration.curve.at(np.array(straight)))
    shares = sum(estimate.latency_ms or 0 for estimate in found.ops)
    assert shares + calibration.offset_ms == pytest.approx(straight)
    assert found.latency_ms == pytest.approx(0.9 * raw + 0.3, rel=0.02)
    assert found.low_ms < found.latency_ms < found.high_ms
    assert (found.coverage, found.missing, found.calibrated) == (1, (), True)
    times = [estimate.latency_ms or 0 for estimate in found.ops]
    assert times == sorted(times, reverse=True)
    assert sum(estimate.count for estimate in found.ops) == len(network.nodes)


def test_twice_the_operators_cost_twice_as_much(model: LatencyModel) -> None:
    network = TINY.network(TINY.sample(np.random.default_rng(1)))
    count = len(network.nodes)
    beside = [
        replace(node, inputs=tuple((at + count if at >= 0 else at, port) for at, port in node.inputs))
        for node in network.nodes
    ]
    twice = replace(network, nodes=(*network.nodes, *beside))
    calibration = model.calibration(network)
    one, two = model.predict(network).latency_ms, model.predict(twice).latency_ms
    assert one is not None
    assert two is not None
    first, both = (calibration.curve.sum_at(ms) - calibration.offset_ms for ms in (one, two))
    assert both == pytest.approx(2 * first)


@pytest.mark.parametrize("block", [0, 8, 16])
@pytest.mark.parametrize("space", [TINY, get_space("proxyless-tiny", image_size=32, num_classes=100)], ids=["28", "32"])
def test_prices_of_a_space_are_predictions_of_its_networks(make_model: MakeModel, space: Space, block: int) -> None:
    model = make_model(kernels_of(space, block), calibration_nets(space), block=block)
    cost = model.cost(space)
    rng = np.random.default_rng(2)
    archs = [space.sample(rng) for _ in range(60)]
    genes = np.array([arch.genes for arch in archs])
    predictions = [model.predict(space.network(arch)) for arch in archs]
    np.testing.assert_allclose(cost.prices.total(genes), [found.latency_ms for found in predictions], rtol=1e-9)
    assert (cost.upper.total(genes) > cost.prices.total(genes)).all()
    assert (cost.upper.total(genes) > [found.high_ms for found in predictions]).all()  # 99% one-sided, 95% there
    assert cost.name == "latency"
    finite = np.isfinite(cost.prices.choices)
    assert (cost.prices.choices[finite] >= 0).all()
    assert finite.sum() == sum(map(len, space.slots))


def test_missing_operators_are_named_and_never_zero(make_model: MakeModel) -> None:
    """Of its kind the table has nothing: nothing is guessed on a device that can be measured."""
    network = TINY.network(TINY.sample(np.random.default_rng(0)))
    lost = network.ops[-1].deployed()
    assert lost.kind == "linear"
    model = make_model([op for op in kernels_of(TINY) if op != lost], [])
    found = model.predict(network)
    assert (found.latency_ms, found.low_ms, found.high_ms) == (None, None, None)
    assert found.missing == (lost.key,)
    assert found.coverage == pytest.approx(1 - 1 / len(network.ops))
    assert found.ops[-1].op == lost
    assert found.ops[-1].latency_ms is None
    assert all(estimate.latency_ms for estimate in found.ops[:-1])


def test_a_shape_that_was_not_measured_is_read_off_its_neighbours(make_model: MakeModel) -> None:
    network = TINY.network(TINY.sample(np.random.default_rng(0)))
    lost = network.ops[3].deployed()
    count = sum(op.deployed() == lost for op in network.ops)
    whole = make_model(kernels_of(TINY), calibration_nets(TINY))
    model = make_model([op for op in kernels_of(TINY) if op != lost], calibration_nets(TINY), name="lost.lut")
    before, found = whole.predict(network), model.predict(network)
    assert before.latency_ms is not None
    assert found.latency_ms is not None
    assert found.latency_ms == pytest.approx(before.latency_ms, rel=0.2)
    known = model.knowledge.of((lost,))
    assert known is not None
    assert known.deviation_ms > 0  # it says that it knows less
    assert found.coverage == pytest.approx(1 - count / len(network.ops))
    assert found.interpolated == pytest.approx(count / len(network.ops))
    assert (found.estimated, before.interpolated) == (0, 0)
    assert [entry.op for entry in found.ops if entry.how == "interpolated"] == [lost]
    # a search does not guess what can be measured
    assert not model.fits(TINY)
    with pytest.raises(HwnasError, match=r"lacks 1 operators of proxyless-tiny.*hwnas profile"):
        model.cost(TINY)


def test_unknown_operators_are_named_and_never_zero(model: LatencyModel) -> None:
    network = TINY.network(TINY.sample(np.random.default_rng(0)))
    found = model.predict(replace(network, unknown=("einsum (attention.1)",)))
    assert found.latency_ms is None
    assert found.missing == ("einsum (attention.1)",)
    assert found.coverage == pytest.approx(len(network.ops) / (len(network.ops) + 1))


def test_a_failed_operator_is_missing_and_says_why(model: LatencyModel) -> None:
    network = TINY.network(TINY.sample(np.random.default_rng(0)))
    key = network.ops[2].key
    with TableWriter.open(model.path) as table:
        table.add_failure("operator", key, "timed out after 60 s")
        broken = LatencyModel(table)
    found = broken.predict(network)
    assert found.latency_ms is None
    assert [(entry.op.key, entry.failure) for entry in found.ops if entry.latency_ms is None] == [
        (key, "timed out after 60 s")
    ]
    with pytest.raises(HwnasError, match="timed out after 60 s"):
        broken.cost(TINY)
    # a whole network that holds it cannot calibrate either
    assert broken.quality().networks < model.quality().networks


def test_a_table_without_networks_says_so(make_model: MakeModel) -> None:
    model = make_model(kernels_of(TINY), [])
    found = model.predict(TINY.network(TINY.sample(np.random.default_rng(0))))
    assert not found.calibrated
    assert found.latency_ms is not None
    assert found.low_ms is not None
    assert 0 < found.low_ms < 0.8 * found.latency_ms  # a wide interval, and one that says something
    assert model.quality().mape is None


def test_networks_of_another_image_size_calibrate_where_there_are_no_others(make_model: MakeModel) -> None:
    other = get_space("proxyless-tiny", image_size=32)
    model = make_model([*kernels_of(TINY), *kernels_of(other)], calibration_nets(TINY))
    assert model.calibration(other) is model.calibrations.pooled
    assert model.calibration(TINY).networks == 12
    few = make_model([*kernels_of(TINY), *kernels_of(other)], [*calibration_nets(TINY), *calibration_nets(other, 3)],
                     name="few.lut")  # fmt: skip
    assert few.calibration(other).networks == 15


def test_spaces_whose_images_have_one_size_are_calibrated_each_by_itself(make_model: MakeModel) -> None:
    """Together they would be calibrated on the mean of both: a fifth too fast for the one, too slow for the other."""
    other = get_space("spos-shufflenet-tiny")
    assert other.input_shape == TINY.input_shape
    factors = {TINY.name: 0.8, other.name: 1.2}
    ops = list(dict.fromkeys([*kernels_of(TINY), *kernels_of(other)]))
    networks = [*calibration_nets(TINY, 20), *calibration_nets(other, 30)]
    model = make_model(ops, networks, factors=factors)
    rng = np.random.default_rng(3)
    for space in (TINY, other):
        archs = [space.sample(rng) for _ in range(20)]
        genes = np.array([arch.genes for arch in archs])
        nets = [space.network(arch) for arch in archs]
        true = np.array([factors[space.name] * sum(map(true_ms, net.ops)) + 0.3 for net in nets])
        found = np.array([model.predict(net).latency_ms for net in nets])
        assert np.abs(found / true - 1).mean() < 0.01
        np.testing.assert_allclose(model.cost(space).prices.total(genes), found, rtol=1e-9)
        # a file does not say which space it is of: its operators do
        np.testing.assert_allclose([model.predict(replace(net, space="")).latency_ms for net in nets], found, rtol=1e-9)
    stranger = tiny_network(size=TINY.input_shape[1])
    assert stranger.input_shape == TINY.input_shape
    assert model.calibration(stranger) is model.calibrations.shapes[TINY.input_shape]
    assert model.calibration(stranger).networks == 50
    assert model.quality().networks == 50
    # too few of a space to speak for it: all of the image size do
    few = make_model(ops, [*calibration_nets(TINY, 20), *calibration_nets(other, 3)], name="few.lut")
    assert few.calibration(other).networks == 23
    assert few.calibration(TINY).networks == 20


def test_a_space_whose_kernels_another_one_corrected_is_as_certain_as_it(make_model: MakeModel) -> None:
    """What runs often in both spaces is corrected once: the second calibration counts its own operators only."""
    networks = calibration_nets(TINY, 40)
    more = get_space("proxyless-tiny", num_classes=100)
    other = [replace(network, space="other") for network in calibration_nets(more, 30)]
    model = make_model(list(dict.fromkeys([*kernels_of(TINY), *kernels_of(more)])), [*networks, *other])
    sizes = {}
    for net in (networks[20], other[20]):
        found = model.predict(net)
        assert found.latency_ms is not None
        assert found.high_ms is not None
        sizes[net.space] = (found.high_ms / found.latency_ms - 1) / model.calibration(net).half_width
    assert model.calibration(other[0]) is not model.calibration(networks[0])
    assert sizes["other"] < 1.5 * sizes[TINY.name]


def test_an_empty_network_takes_the_offset(model: LatencyModel) -> None:
    found = model.predict(Network(TINY.input_shape, (), (-1, 0)))
    calibration = model.calibration(TINY)
    assert found.latency_ms == pytest.approx(calibration.curve.at(np.array(calibration.offset_ms)))
    assert found.latency_ms == pytest.approx(calibration.offset_ms, rel=0.15)


# -- the command that mends it ---------------------------------------------------------------------------------------


def accepted(command: str) -> None:
    """Fails if the command line does not take `command` as it was printed; nothing is measured."""
    from hwnas.cli.profile import command as profile
    from hwnas.cli.terminal import Terminal

    from hwnas.devices import find_profile

    program, name, *args = shlex.split(command)
    assert (program, name) == ("hwnas", "profile")
    context = profile.make_context("profile", args, obj=Terminal(("profile", *args)))
    found = find_profile(context.params["device"]).override(
        batch_size=context.params["batch"], threads=context.params["threads"]
    )
    assert found.batch_size in (1, 4)
    for space in context.params["space"]:
        get_space(space, image_size=context.params["image_size"], num_classes=context.params["num_classes"])


@pytest.mark.parametrize(
    ("space", "options"),
    [
        (TINY, {}),
        (get_space("proxyless-tiny", image_size=64, num_classes=7), {}),
        (TINY, {"batch_size": 4}),
        (TINY, {"name": "my tables' best.lut"}),
        (TINY, {"profile_name": "one-that-does-not-ship"}),
    ],
)
def test_the_error_of_a_space_that_is_not_covered_holds_a_command_that_works(
    make_model: MakeModel, space: Space, options: dict[str, object]
) -> None:
    model = make_model([Op.linear(3, 4), *tiny_network().ops], [], **options)
    with pytest.raises(HwnasError, match=rf"lacks {len(kernels_of(space))} operators of proxyless-tiny") as caught:
        model.cost(space)
    assert len(str(caught.value).splitlines()) == 1
    command = profile_command(space, model)
    assert f"run '{command}'" in str(caught.value)
    accepted(command)
    if space.num_classes != 10:
        assert re.search(r"--image-size 64 --num-classes 7", command)
    assert not model.fits(space)


def test_operators_of_no_calibration_network_are_corrected_by_the_networks_they_were_timed_in(tmp_path: Path) -> None:
    """Where two input shapes are calibrated, an operator takes the factor of its own: tiny networks' may be 0.7."""
    spaces = {TINY: 0.5, get_space("proxyless-tiny", image_size=32, num_classes=100): 0.02}
    foreign = {space: tiny_network(space.input_shape[1] // 2).ops[0] for space in spaces}
    number = 0
    with TableWriter.create(tmp_path / "t.lut", quick_profile(), {**DESCRIBE, "channel_block": 0}) as table:
        table._db.execute("BEGIN")
        session = table.start_session({})
        for space, beside in spaces.items():  # what every run of a kernel seems to take more than it does, of 0.01 ms
            for op in kernels_of(space):
                table.add_entry("operator", op.key, {})
                for visit in range(3):
                    table.add_visit(session, "operator", op.key, visit, 1, [true_ms(op)] * 2)
            for network in calibration_nets(space, 30):
                number += 1
                kernels = lowering(table.header)(network)
                table.add_entry("network", str(number), network.to_json())
                whole = sum(true_ms(op) - 0.01 * beside for op in kernels)
                for visit in range(3):
                    table.add_visit(session, "network", str(number), visit, 1, [whole])
        table._db.execute("COMMIT")
        for space, op in foreign.items():
            table.add_entry("cover", f"of {space.input_shape}", {"input_shape": list(space.input_shape)})
            for visit in range(3):
                table.add_kernels(
                    session, f"of {space.input_shape}", visit, [1.0], {op.key: np.array([0.2])}, {op.key: 1}
                )
        model, plain = LatencyModel(table), LatencyModel(table, calibrate_on=lambda _: False)
    usual = [model.calibration(space).factor_of(0.2) for space in spaces]
    assert abs(usual[0] - usual[1]) > 0.02
    for factor, op in zip(usual, foreign.values(), strict=True):
        assert plain.operators[op.key].latency_ms == pytest.approx(0.2)
        assert model.operators[op.key].latency_ms == pytest.approx(0.2 * factor)
