"""Removing atoms: outputs, optimizer and averages stay what a net with the atoms masked out has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hwnas.nn.atoms import AtomSum
from hwnas.nn.blocks import ChainNet
from hwnas.nn.shrink import BranchRef, atom_blocks, branches_of, groups_of, importances, remove_atoms, widths_of
from hwnas.spaces.atoms import AtomArch, AtomSpace, AtomTable
from hwnas.spaces.chain import Stage
from hwnas.train.ema import Ema
from hwnas.train.rmsprop import RMSProp

TABLE = AtomTable(4, 4, (Stage(6, 3, 2), Stage(8, 2, 2)), 16, expand=2)
"""Five blocks, two of which change the shape."""
SPACE = AtomSpace("few", TABLE, (3, 12, 12), 4)


def images(seed: int, count: int = 8) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fresh(seed: int = 0) -> ChainNet:
    """A net in double precision, some steps old: nothing in it is as it was initialised."""
    net = SPACE.build(SPACE.supernet_arch, generator=torch.Generator().manual_seed(seed)).double()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            generator = torch.Generator().manual_seed(part.num_features + seed)
            nn.init.normal_(part.bias, generator=generator)
            nn.init.uniform_(part.weight, 0.5, 1.5, generator=generator)
            part.momentum = 0.3
    return net


class Training:
    """A net with optimizer and averages; `dead` atoms are kept at an importance of zero."""

    def __init__(self) -> None:
        self.net = fresh()
        self.optimizer = RMSProp(self.net.parameters(), lr=0.01, weight_decay=1e-3)
        self.ema = Ema(self.net, 0.9)
        self.dead: dict[BranchRef, Tensor] = {}

    def mask(self) -> None:
        with torch.no_grad():
            for ref, mask in self.dead.items():
                name = groups_of(self.net)[ref].importance
                gamma = importances(self.net)[ref]
                for tensor in (gamma, self.ema.shadow[name], *self.optimizer.state[gamma].values()):
                    tensor[mask] = 0

    def step(self, seed: int) -> None:
        labels = torch.arange(8) % 4
        self.net.train()
        self.net.head[3].eval()  # no dropout: its noise would depend on the shapes
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.net(images(seed)), labels).backward()
        for ref, mask in self.dead.items():
            grad = importances(self.net)[ref].grad
            assert grad is not None
            grad[mask] = 0
        self.optimizer.step()
        self.ema.update(self.net)
        self.mask()

    def output(self) -> Tensor:
        with torch.no_grad():
            result: Tensor = self.net.eval()(images(99))
        return result


def survivors(full: Training, shrunk: Training) -> None:
    """Everything that the shrunk training holds is what the masked one has at the same name."""
    masks = {groups_of(full.net)[ref].name: ~mask for ref, mask in full.dead.items()}
    tied = {
        t.name: (t.dim, masks[group.name])
        for group in groups_of(full.net).values()
        for t in group.tied
        if group.name in masks
    }
    theirs, mine = dict(full.net.named_parameters()), dict(shrunk.net.named_parameters())
    assert set(shrunk.ema.shadow) == set(mine)
    assert set(map(id, mine.values())) == {id(p) for g in shrunk.optimizer.param_groups for p in g["params"]}
    for name, parameter in mine.items():
        dim, kept = tied.get(name, (0, slice(None)))
        pick = (slice(None),) * dim + (kept,)
        pairs = [(parameter, theirs[name]), (shrunk.ema.shadow[name], full.ema.shadow[name])]
        states = shrunk.optimizer.state[parameter], full.optimizer.state[theirs[name]]
        pairs += [(states[0][key], states[1][key]) for key in states[1]]
        for got, wanted in pairs:
            torch.testing.assert_close(got, wanted[pick], rtol=1e-6, atol=1e-9)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_random_shrinks_stay_equal_to_a_masked_net(seed: int) -> None:
    rng = np.random.default_rng(seed)
    full, shrunk = Training(), Training()
    for training in (full, shrunk):
        training.step(0)
    for turn in range(3):
        alive = branches_of(shrunk.net)
        share = rng.choice(
            [0.2, 0.6, 1.0], size=len(SPACE.blocks), p=[0.5, 0.4, 0.1]
        )  # now and then a whole residual block
        share[[0, 3]] = np.minimum(share[[0, 3]], 0.6)
        chosen = {ref: torch.from_numpy(rng.random(branch.atoms) < share[ref.block]) for ref, branch in alive.items()}
        for index in (0, 3):  # blocks that change the shape keep an atom here; the next test has their rule
            first = next(ref for ref in chosen if ref.block == index)
            chosen[first][0] = False
        for ref, mask in chosen.items():
            before = full.dead.get(ref, torch.zeros(sum(SPACE.full[ref.block]) // 3, dtype=torch.bool))
            whole = before.clone()
            whole[~before] = mask
            full.dead[ref] = whole
        full.mask()
        shrunk.dead = chosen
        shrunk.mask()
        expected = shrunk.output()
        remove_atoms(shrunk.net, chosen, optimizer=shrunk.optimizer, shadows=[shrunk.ema.shadow])
        shrunk.dead = {}
        torch.testing.assert_close(shrunk.output(), expected, rtol=1e-7, atol=1e-7)
        widths = widths_of(shrunk.net, TABLE.kernels)
        assert shrunk.net(images(1)).shape == (8, 4)
        shrunk_plain = SPACE.build(AtomArch("few", widths)).double()
        shrunk_plain.load_state_dict(shrunk.net.state_dict())  # names and shapes are those of the architecture
        if any(not any(row) for row in widths):
            return  # in the masked net a dead block's BatchNorm still learns a constant; here it is gone
        full.step(turn + 1)
        shrunk.step(turn + 1)
        survivors(full, shrunk)


def test_a_block_that_changes_the_shape_keeps_its_best_atom() -> None:
    net = fresh()
    refs = [ref for ref in branches_of(net) if ref.block == 3]
    with torch.no_grad():
        for ref in refs:
            importances(net)[ref].fill_(1e-4)
        importances(net)[refs[1]][2] = -3e-4
    best = branches_of(net)[refs[1]].project.weight[:, 2].detach().clone()
    remove_atoms(net, {ref: torch.ones(branches_of(net)[ref].atoms, dtype=torch.bool) for ref in refs})
    assert widths_of(net, TABLE.kernels)[3] == (0, 1, 0)
    assert torch.equal(branches_of(net)[refs[1]].project.weight[:, 0], best)
    assert branches_of(net)[refs[1]].convs[1].conv.groups == 1


def test_a_residual_block_without_atoms_is_the_identity() -> None:
    net = fresh()
    refs = [ref for ref in branches_of(net) if ref.block in (1, 4)]
    with torch.no_grad():
        net.train()(images(2))
        for ref in refs:
            importances(net)[ref].zero_()
        before = net.eval()(images(3))
        remove_atoms(net, {ref: torch.ones(branches_of(net)[ref].atoms, dtype=torch.bool) for ref in refs})
        torch.testing.assert_close(net(images(3)), before)
    block = atom_blocks(net)[1]
    assert isinstance(block, AtomSum)
    assert list(block.parameters()) == []
    assert torch.equal(block(images(4)), images(4))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_order_of_removals_does_not_matter(order: tuple[int, ...]) -> None:
    """The published code's bug (AtomNAS issues 9, 11): when a branch that is not the last dies, names move."""
    net = fresh()
    kernels = ("k3", "k5", "k7")
    for place in order:
        ref = BranchRef(1, kernels[place])
        if place != 1:
            remove_atoms(net, {ref: torch.ones(12, dtype=torch.bool)})
        else:
            remove_atoms(net, {ref: torch.arange(12) % 3 == 0})
    assert widths_of(net, TABLE.kernels)[1] == (0, 8, 0)
    other = fresh()
    remove_atoms(other, {BranchRef(1, k): torch.ones(12, dtype=torch.bool) for k in ("k3", "k7")})
    remove_atoms(other, {BranchRef(1, "k5"): torch.arange(12) % 3 == 0})
    torch.testing.assert_close(net.eval()(images(5)), other.eval()(images(5)))
