"""Who writes on-policy text: laws of the mixes from which tokens are drawn, and of what is kept."""

from __future__ import annotations

import pytest
import tiny
import torch

from edgeslm.data.batch import Batch
from edgeslm.data.on_policy import OnPolicy, contrasted, mixed, own_writer
from edgeslm.data.written import WriteSettings

SETTINGS = WriteSettings(0, 0, 0, temperature=1.0, top_k=0, top_p=1.0, seed=0)


def logits(seed: int) -> torch.Tensor:
    return torch.randn(4, 30, generator=torch.Generator().manual_seed(seed)) * 2


def test_a_mix_is_the_weighted_mean_of_probabilities():
    student, teacher = logits(0), logits(1)
    found = torch.softmax(mixed(0.25)([student, teacher]), dim=-1)
    torch.testing.assert_close(found, 0.75 * student.softmax(-1) + 0.25 * teacher.softmax(-1))
    torch.testing.assert_close(mixed(0.0)([student, teacher]).softmax(-1), student.softmax(-1))


def test_an_adversary_prefers_what_the_student_thinks_unlikely():
    student, teacher = logits(2), logits(3)
    plain, against = (contrasted(s)([student, teacher]).softmax(-1) for s in (0.0, 1.0))
    kept = plain > 0
    assert torch.equal(kept, against > 0)
    assert torch.equal(kept, teacher.softmax(-1) >= 0.1 * teacher.softmax(-1).max(-1, keepdim=True).values)
    gap = teacher.log_softmax(-1) - student.log_softmax(-1)
    assert ((against * gap).sum(-1) > (plain * gap).sum(-1)).all()


def test_an_adversary_against_its_own_teacher_writes_as_the_teacher():
    teacher = logits(4)
    torch.testing.assert_close(contrasted(3.0)([teacher, teacher]), contrasted(0.0)([teacher, teacher]))


def test_the_adversary_writes_text_on_which_the_two_differ_more():
    from edgeslm.schemes.measure import row_distance

    student, teacher = tiny.llama(seed=1), tiny.llama(seed=2)
    prompts = [[5, 9, 11, 4]] * 16
    far = {}
    for strength in (0.0, 4.0):
        texts = own_writer(SETTINGS, set(), teacher, contrasted(strength))(student, prompts, 20, 3)
        batch = Batch(torch.tensor(texts), torch.ones(16, 20))
        far[strength] = float(row_distance(student, teacher, batch).mean())
    assert far[4.0] > far[0.0]


@pytest.mark.parametrize("candidates", [1, 3])
def test_what_counts_is_what_was_written_and_the_farthest_is_kept(candidates):
    calls = []

    def writer(model, prompts, length, seed):
        calls.append(len(prompts))
        return [p + [20 + i] * (3 if i % 2 else 6) for i, p in enumerate(prompts)]

    policy = OnPolicy(1.0, 4, writer, 0, 0, candidates, lambda model, batch: batch.ids[:, 4].float())
    batch = Batch(torch.arange(20).reshape(2, 10), torch.ones(2, 10))
    found, _ = policy(0, batch, tiny.llama())
    assert calls == [2 * candidates] and found.rows is None
    assert torch.equal(found.ids[:, :4], batch.ids[:, :4])
    assert found.mask[:, :4].sum() == 0 and found.mask.sum() == 9
    assert found.ids[:, 4].tolist() == [20 + 2 * (candidates - 1), 21 + 2 * (candidates - 1)]
