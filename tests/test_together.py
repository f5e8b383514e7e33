"""Weights that are rounded together lie where each one lies by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgeslm.quantize import together
from edgeslm.quantize.masters import Masters, attach

FORMATS = {"a": "q4_k", "b": "iq3_s", "c": "iq3_s", "d": "q4_k", "e": "iq3_s", "f": "q3_k"}


class Count(TorchDispatchMode):
    """Operations that a GPU would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.done = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.done += 1
        return function(*args, **(kwargs or {}))


def masters() -> Masters:
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(512, 8 + 4 * i, bias=False) for i, name in enumerate(FORMATS)})
    made = attach(model, {f"{name}.weight": form for name, form in FORMATS.items()}, torch.bfloat16)
    for master in made.items:
        if master.name[0] in "bcd":  # one of iq3_s has no importance
            master.importance = torch.rand(512) ** 4
        master.fit()
        master.value.data += 0.02 * torch.randn_like(master.value)
    return made


def test_together_is_what_each_is_alone() -> None:
    made = masters()
    for master in made.items:
        master.project()
    wanted = [master.weight.detach().clone() for master in made.items]
    for master in made.items:
        master.weight.data.zero_()
    with Count() as joined:
        together.project(made.items, 1 << 20)
    assert all(torch.equal(master.weight, weight) for master, weight in zip(made.items, wanted, strict=True))
    with Count() as four:  # groups, of six masters
        for index in (0, 1, 4, 5):
            made.items[index].project()
    assert joined.done < four.done + 4 * 10  # joined and split


def test_codes_that_stay_are_decoded_with_the_scales_as_they_are() -> None:
    made = masters().items
    for master in made[:4]:
        learned = master.learn_scales(hold_codes=True)
        learned.step.data *= 1.25
        master.scales = learned.scales(master.format)
    kept = {master.name: master.codes().clone() for master in made}
    together.project(made, 1 << 20)
    for master in made:
        decoded = master.format.decode(kept[master.name], master.scales).to(torch.bfloat16)
        assert torch.equal(master.weight.view(-1, master.format.block), decoded), master.name
    groups = [[m.name[0] for m in group] for group in together.groups(made, 1 << 20)]
    assert groups == [["a", "d"], ["b", "c"], ["e"], ["f"]]
    made[1].held = None
    assert ["b"] in [[m.name[0] for m in group] for group in together.groups(made, 1 << 20)]


def test_a_rank_without_rows_of_a_tensor_has_nothing_to_round() -> None:
    made = masters().items
    for master in made[1:3]:
        master.value = nn.Parameter(master.value.data[:0])
    assert [[m.name[0] for m in group] for group in together.groups(made, 1 << 20)] == [["a", "d"], ["e"], ["f"]]
    together.project(made[1:3], 1 << 20)


def test_groups_have_one_format_and_kind_of_importance_and_a_size() -> None:
    made = masters().items
    names = [[master.name[0] for master in group] for group in together.groups(made, 1 << 20)]
    assert names == [["a", "d"], ["b", "c"], ["e"], ["f"]]
    largest = 512 * 20
    small = together.groups(made, largest)
    assert [[m.name[0] for m in group] for group in small] == [["a"], ["d"], ["b"], ["c"], ["e"], ["f"]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_on_a_card_as_on_a_processor() -> None:
    one, other = masters(), masters()
    for master in other.items:
        master.value.data, master.weight.data = master.value.data.cuda(), master.weight.data.cuda()
        master.scales = {key: value.cuda() for key, value in master.scales.items()}
        master.importance = None if master.importance is None else master.importance.cuda()
    for each in (one, other):
        each.set_weights(grid=True, refit=False)
    same = [torch.isclose(a.weight, b.weight.cpu()).float().mean() for a, b in zip(one.items, other.items, strict=True)]
    assert min(same) > 0.999  # a weight between two levels may fall to either
