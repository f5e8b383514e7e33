"""Answers and nothing but answers: which tokens they are under real templates, a loss on them alone, the supervised
stage, and answers as a term of distillation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from edgeslm import recipe as recipes
from edgeslm.data import chat
from edgeslm.data.answers import dialogues, marked
from edgeslm.data.batch import Batch
from edgeslm.data.rows import Rows, pack, pack_whole
from edgeslm.errors import DataError, RecipeError
from edgeslm.models.pypi import cache_folder
from edgeslm.pipeline.check import check
from edgeslm.pipeline.distill import DISTILL
from edgeslm.pipeline.run import run
from edgeslm.pipeline.sft_figures import contains
from edgeslm.pipeline.stage import Context, stage_hash
from edgeslm.progress import Progress
from edgeslm.teachers.live import LiveTeacher

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN25 = (  # without its tools
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>"
    "\n' }}{%- endif %}{%- for message in messages %}{%- if (message.role == 'user') or (message.role == 'system' and "
    "not loop.first) or (message.role == 'assistant' and not message.tool_calls) %}{{- '<|im_start|>' + message.role + "
    "'\n' + message.content + '<|im_end|>' + '\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message %}{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + "
    "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # as Qwen3 and those after it: the last turn alone keeps a block for thoughts
    "{%- for m in messages %}{%- if m.role == 'assistant' and loop.last %}{{- '<|im_start|>assistant\n<think>\n\n"
    "</think>\n\n' + m.content + '<|im_end|>\n' }}{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + "
    "'<|im_end|>\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}{{ m.content }}"
    "{% endgeneration %}<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GLUED = (  # the prompt ends inside what the tokenizer joins with the answer's first letters
    "{% for m in messages %}{% if m.role == 'user' %}Q {{ m.content }} A i{% else %}{{ m.content }}<|im_end|>\n"
    "{% endif %}{% endfor %}"
)
PREPARED = (  # what is put before an answer is not what a finished dialogue shows there
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Name a fruit."},
    {"role": "assistant", "content": "An apple,\n\nthe red one."},
    {"role": "user", "content": "Another?"},
    {"role": "assistant", "content": "A pear. \N{PEAR}"},
]


def with_template(template: str) -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def spoken(tokenizer: Any, messages: Any) -> list[str]:
    """The text of each run of tokens that is marked as an answer."""
    found = marked(tokenizer, messages, "here")
    assert found.ids == chat.template_ids(tokenizer, messages) and len(found.ids) == len(found.answers)
    runs: list[list[int]] = []
    for at, (token, mark) in enumerate(zip(found.ids, found.answers, strict=True)):
        if mark and not (at and found.answers[at - 1]):
            runs.append([])
        if mark:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize(
    "template", [tiny.TEMPLATE, SMOLLM2, QWEN25, MARKED], ids=["chatml", "smollm2", "qwen", "marked"]
)
@pytest.mark.parametrize("system", [True, False])
def test_answers_are_what_the_assistant_writes_with_the_end_of_its_turn(template, system):
    messages = TALK if system else TALK[1:]
    assert spoken(with_template(template), messages) == [
        "An apple,\n\nthe red one.<|im_end|>",
        "A pear. \N{PEAR}<|im_end|>",
    ]


@pytest.mark.parametrize("messages", [TALK, TALK[1:], TALK[1:3]])
def test_answers_of_a_template_that_ends_them_with_the_end_of_text(messages):
    wanted = [f" {m['content']} <|im_end|>" for m in messages if m["role"] == "assistant"]
    assert spoken(with_template(LLAMA2), messages) == wanted


def test_answers_begin_where_a_prompt_for_an_answer_ends():
    """Every token before an answer is the prompt that a chat application would send, and no token more."""
    for template in (SMOLLM2, QWEN25, LLAMA2):
        tokenizer = with_template(template)
        found = marked(tokenizer, TALK, "here")
        starts = [i for i, mark in enumerate(found.answers) if mark and not found.answers[i - 1]]
        asked = [chat.template_ids(tokenizer, TALK[:k], answer=True) for k in (2, 4)]
        assert [found.ids[:start] for start in starts] == asked


def test_the_last_turn_may_be_written_otherwise_than_those_before_it():
    assert spoken(with_template(THINKING), TALK) == [
        "An apple,\n\nthe red one.<|im_end|>",
        "<think>\n\n</think>\n\nA pear. \N{PEAR}<|im_end|>",
    ]


def test_a_token_that_begins_in_the_prompt_is_the_prompts():
    """`in` joins the prompt's last letter and the answer's first: a model that was asked could not write it."""
    tokenizer = with_template(GLUED)
    messages = [{"role": "user", "content": "where"}, {"role": "assistant", "content": "nside"}]
    assert spoken(tokenizer, messages) == ["side<|im_end|>"]


def test_what_cannot_be_told_is_refused():
    with pytest.raises(DataError, match=r"x:3: the chat template writes what comes before an answer otherwise"):
        marked(with_template(PREPARED), TALK, "x:3")
    with pytest.raises(DataError, match=r"x:3: begins with an answer that nothing asks for"):
        marked(with_template(SMOLLM2), TALK[2:], "x:3")
    with pytest.raises(DataError, match="refuses a dialogue"):
        marked(with_template(LLAMA2), [TALK[1], TALK[1], TALK[2]], "x:3")


def test_answers_of_the_real_tokenizers():
    """SmolLM2's own template and vocabulary, out of the default teacher's file."""
    from edgeslm.models.source import DEFAULT_TEACHER, resolve
    from edgeslm.models.tokenizer import load_tokenizer

    if not list(cache_folder().rglob("SmolLM2-135M-Instruct.Q4_1.gguf")):
        pytest.skip("the default teacher is not in the cache")
    tokenizer = load_tokenizer(resolve(DEFAULT_TEACHER, Path()))
    assert spoken(tokenizer, TALK) == ["An apple,\n\nthe red one.<|im_end|>", "A pear. \N{PEAR}<|im_end|>"]
    assert spoken(tokenizer, TALK[1:3]) == ["An apple,\n\nthe red one.<|im_end|>"]


def test_packed_rows_carry_the_marks(tmp_path):
    rows = pack([[5, 6, 7], [8, 9]], 4, 0, "s", [[0, 1, 1], [0, 1]])
    assert rows.ids.tolist() == [[5, 6, 7, 0], [8, 9, 0, 0]] and rows.mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert rows.answers.tolist() == [[0, 1, 1, 0], [0, 1, 0, 0]]
    joined = Rows.join([rows, rows])
    joined.save(tmp_path / "rows.safetensors")
    assert torch.equal(Rows.load(tmp_path / "rows.safetensors").answers, torch.cat([rows.answers, rows.answers]))
    assert Rows.join([rows, pack([[1]], 4, 0, "t")]).answers is None


def test_whole_dialogues_are_packed_and_only_long_ones_are_cut():
    lengths = [3, 9, 7, 8, 2, 19, 1, 5]
    documents = [[10 * i + j for j in range(1, n + 1)] for i, n in enumerate(lengths, start=1)]
    marks = [[t % 2 for t in d] for d in documents]
    rows = pack_whole(documents, marks, 8, 0, "s")
    stream = [rows.ids[i][rows.mask[i].bool()].tolist() for i in range(len(rows))]
    flat = [t for row in stream for t in row if t]
    assert sorted(flat) == sorted(t for d in documents for t in d)
    for document in (d for d in documents if len(d) <= 8):
        assert any(row[i : i + len(document)] == document for row in stream for i in range(8))
    assert rows.answers.tolist() == [[t % 2 if t else 0 for t in row] for row in rows.ids.tolist()]
    assert len(rows) == -(-(sum(lengths) + 4) // 8)  # as few as can be, with a separator where two meet
    with pytest.raises(DataError, match="gives no dialogue"):
        pack_whole([], [], 8, 0, "s")


def test_rows_that_hold_a_text_are_found():
    ids = torch.arange(24, dtype=torch.int32).reshape(3, 8).numpy()
    assert contains(ids, [6, 7, 8, 9]) and not contains(ids, [6, 8]) and not contains(ids, [256])


# ---- the law: what is asked gives no gradient


def batch(rows: int = 4, length: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(3)
    answers = torch.zeros(rows, length)
    answers[0, 4:7], answers[1, 2:], answers[3, 11] = 1, 1, 1
    mask = torch.ones(rows, length)
    mask[1, 9:] = 0
    ids = torch.randint(0, 288, (rows, length), generator=generator)
    return Batch(ids, mask, torch.arange(rows), {"answers": answers})


ANSWERS = {"loss": "cross_entropy", "learn": "answers"}


def test_the_gradient_is_that_of_transformers_with_prompts_left_out_of_its_labels():
    given = batch()
    counted = given.fields["answers"] * given.mask
    labels = given.ids.masked_fill(counted == 0, -100)
    for micro in (1, 3, 4):
        total, grads, _ = tiny.gradients(tiny.step_of(tiny.llama(layers=2), [ANSWERS], micro_rows=micro), given, None)
        other = tiny.llama(layers=2)
        loss = other(input_ids=given.ids, labels=labels).loss
        loss.backward()
        assert total == pytest.approx(float(loss.detach()), rel=1e-5)
        for name, parameter in other.named_parameters():
            assert torch.allclose(grads[name], parameter.grad, rtol=1e-4, atol=1e-6), name


def test_predictions_of_what_is_asked_have_no_gradient_at_all():
    """Exactly zero, whatever the prompt's tokens would have been; with all tokens it is not."""
    from edgeslm.schemes.head_loss import HeadInput, head_loss
    from edgeslm.schemes.objective import Objective

    given = batch()
    (targets, mask), answers = (given.ids[:, 1:].reshape(-1), given.mask[:, 1:].reshape(-1)), given.answers
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(len(targets), 16, generator=generator).requires_grad_()
    head = torch.randn(288, 16, generator=generator)
    for terms, silent in (([ANSWERS], answers == 0), ([{"loss": "cross_entropy"}], mask == 0)):
        states.grad = None
        weights = answers * (float(mask.sum()) / float(answers.sum()))
        asked = HeadInput(targets, mask, float(mask.sum()), None, answers=weights)
        loss, _ = head_loss(states, head, asked, Objective.build(terms).responses)
        loss.backward()
        assert states.grad[silent].abs().max() == 0 and states.grad[~silent].abs().amin(1).min() >= 0
        assert (states.grad[~silent].abs().sum(1) > 0).all() and silent.any() and not silent.all()


def test_answers_beside_distillation_add_to_it():
    """KL on everything and cross-entropy on answers: gradients are the sum of either alone."""
    teacher, given, found = tiny.llama(seed=1), batch(), []
    for terms in ([{"loss": "forward_kl"}, {**ANSWERS, "weight": 0.5}], [{"loss": "forward_kl"}], [ANSWERS]):
        step = tiny.step_of(tiny.llama(layers=2), terms, [teacher])
        found.append(tiny.gradients(step, given, LiveTeacher(teacher))[:2])
    assert found[0][0] == pytest.approx(found[1][0] + 0.5 * found[2][0], rel=1e-5)
    for name, grad in found[0][1].items():
        assert torch.allclose(grad, found[1][1][name] + 0.5 * found[2][1][name], rtol=1e-4, atol=1e-7), name


def test_a_step_without_any_answer_moves_nothing():
    given = batch()
    silent = Batch(given.ids, given.mask, given.rows, {"answers": torch.zeros_like(given.mask)})
    total, grads, _ = tiny.gradients(tiny.step_of(tiny.llama(layers=2), [ANSWERS]), silent, None)
    assert total == 0 and all(g is None or g.abs().max() == 0 for g in grads.values())


# ---- the stage

SFT = "sft={steps: 6, batch_tokens: 128, micro_rows: 2, lr: 0.003, checkpoint_every: 1, apart: 2}"
SHORT = ["threads=1", "distill.train.steps=2", "quantize.start=0", "data.sequence=64",
         "data.sources=[{kind: text, paths: [learn.txt]}, {kind: chat, paths: [chat.jsonl]}]"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("sft")
    tiny.recipe(made)
    rows = [{"prompt": f"Say the {w} word {i}.", "response": f"The {w}, {i}!"} for i, w in enumerate(["or", "in"] * 8)]
    (made / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    judge = [{"prompt": f"Tell the {w} word.", "response": f"The {w}!"} for w in ("or", "in")]
    (made / "judge.jsonl").write_text("\n".join(map(json.dumps, judge)), encoding="utf-8")
    return made


def tuned(folder: Path, runs: Path, *overrides: str, until: str = "sft") -> Path:
    loaded = recipes.load(folder / "tiny.yaml", [SFT, *SHORT, *overrides])
    root = run(loaded, folder, runs, Progress(quiet=True), until=until)
    return root / json.loads((root / "run.json").read_text())["stages"][until]


def weights(stage: Path) -> dict[str, torch.Tensor]:
    return load_file(stage / "model" / "model.safetensors")


def same(left: Path, right: Path) -> bool:
    ours, theirs = weights(left), weights(right)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    return tuned(folder, tmp_path_factory.mktemp("whole"))


def test_answers_that_are_kept_apart_are_learned_to_be_given(whole):
    facts = json.loads((whole / "sft.json").read_text())
    points = facts["points"]
    assert [p["tokens"] for p in points] == [0, 256, 384, 512, 768]  # updates 0, 2, 3, 4 and 6
    assert points[-1]["loss"] < 0.9 * points[0]["loss"] and facts["teacher_loss"] > 0
    assert facts["judged"]["dialogues"] == 2 and facts["judged"]["answer_tokens"] > 10
    rows = Rows.load(whole / "rows.safetensors")
    assert rows.answers is not None and facts["answer_tokens"] == int(rows.answers.sum())
    for ids, _ in json.loads((whole / "judged.json").read_text())["dialogues"]:
        assert not contains(rows.ids.numpy(), ids)
    assert not (whole / "checkpoint.safetensors").exists()


def test_same_again_and_stopped_and_gone_on_with(folder, whole, tmp_path):
    with tiny.stopping_at(3):
        tuned(folder, tmp_path)
    assert len(next(tmp_path.glob("tiny/sft-*/log.jsonl")).read_text().splitlines()) == 3
    again = tuned(folder, tmp_path)
    assert same(whole, again) and again.name == whole.name
    assert json.loads((again / "sft.json").read_text()) == json.loads((whole / "sft.json").read_text())
    assert not same(whole, tuned(folder, tmp_path, "seed=1"))


def test_what_a_teacher_writes_is_written_once_and_learned_from(folder, tmp_path, monkeypatch):
    """Without sources of its own the stage learns from the dialogues of `data`, word for word."""
    from edgeslm.data import written

    write, calls = written.write, list[int]()
    monkeypatch.setattr(written, "write", lambda *given: calls.append(1) or write(*given))
    stage = tuned(folder, tmp_path, "data.sources=[{kind: written, seeds: [chat.jsonl], rows: 10, max_new: 6}]")
    assert calls == [1]
    ((*kept,),) = json.loads(next(stage.parent.glob("data-*/dialogues.json")).read_text())
    tokenizer = tiny.tokenizer()
    rows = chat.json_lines(folder / "chat.jsonl")[:10]
    asked = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    for (ids, answers), messages in zip(kept, asked, strict=True):
        prompt = chat.template_ids(tokenizer, messages, answer=True)
        assert ids[: len(prompt)] == prompt and answers == [0] * len(prompt) + [1] * (len(ids) - len(prompt))
    learned = Rows.load(stage / "rows.safetensors")
    judged = json.loads((stage / "judged.json").read_text())["dialogues"]
    assert len(judged) == 2 and all(dialogue in kept for dialogue in judged)
    assert sum(sum(a) for _, a in kept) == int(learned.answers.sum()) + sum(sum(a) for _, a in judged)


def test_other_dialogues_to_judge_by_train_no_student_anew(folder, tmp_path):
    """The stage runs again for its figures; what follows depends on its weights alone."""
    hashes = []
    for judge in (["judge.jsonl"], ["other.jsonl"]):
        text = (folder / "judge.jsonl").read_text().replace("Tell", "Speak" if "other" in judge[0] else "Tell")
        (folder / judge[0]).write_text(text)
        loaded = recipes.load(folder / "tiny.yaml", [SFT, *SHORT, f"sft.judge={judge}"])
        context = Context(loaded, folder, tmp_path / "tiny", Progress(quiet=True))
        root = run(loaded, folder, tmp_path, Progress(quiet=True), until="sft")
        named = json.loads((root / "run.json").read_text())["stages"]
        context.folders = {name: root / at for name, at in named.items()}
        hashes.append((named["sft"], stage_hash(DISTILL, context)))
    assert hashes[0][0] != hashes[1][0] and hashes[0][1] == hashes[1][1]


def test_distillation_begins_with_the_fine_tuned_student_and_judges_its_answers(folder, tmp_path):
    """No step of distillation and no grid: what is frozen is what was fine-tuned, and so is its loss on answers."""
    from edgeslm.quantize.frozen import Frozen
    from edgeslm.report.folder import read
    from edgeslm.report.tuning import tuned as told

    plain = ["distill.train.steps=0", 'quantize={plan: [{pattern: "*", format: f32}]}', "sft.judge=[judge.jsonl]"]
    stage = tuned(folder, tmp_path, *plain, until="distill")
    (fine,) = stage.parent.glob("sft-*")
    frozen = Frozen.load(stage / "frozen")
    assert all(torch.equal(frozen.tensors[n].decode(), w) for n, w in weights(fine).items() if n in frozen.tensors)
    answers = json.loads((stage / "summary.json").read_text())["answers"]
    facts = json.loads((fine / "sft.json").read_text())
    assert answers["read"] == 0 and answers["judged"] == facts["judged"]
    assert answers["loss"] == pytest.approx(facts["points"][-1]["loss"], rel=1e-5)
    (table, note) = told(read(stage.parent))
    assert [row[0] for row in table.rows][-2:] == ["After distillation, as shipped", "The teacher"]
    assert "2 dialogues" in note.text


def test_no_figure_where_distillation_has_read_the_prompts(folder, tmp_path):
    stage = tuned(folder, tmp_path, until="distill")
    answers = json.loads((stage / "summary.json").read_text())["answers"]
    assert answers["read"] == 2 and "loss" not in answers


def test_a_term_on_answers_trains_beside_the_teacher(folder, tmp_path):
    stage = tuned(folder, tmp_path, "sft=null", f"distill.objective=[{{loss: forward_kl}}, {json.dumps(ANSWERS)}]",
                  "distill.train.steps=8", until="distill")  # fmt: skip
    (data,) = stage.parent.glob("data-*")
    facts, rows = json.loads((data / "data.json").read_text()), Rows.load(data / "rows.safetensors")
    assert rows.answers is not None and facts["answer_tokens"] == int(rows.answers.sum()) > 100
    assert rows.answers[rows.source == 0].sum() == 0 and rows.answers[rows.source == 1].sum() > 0
    lines = [json.loads(line) for line in (stage / "log.jsonl").read_text().splitlines()]
    assert {tuple(line["terms"]) for line in lines} == {("forward_kl", "cross_entropy")}


def test_recipes_without_it_are_as_they_were(folder):
    """Their hashes name records; rows say nothing of answers that nobody asked for."""
    loaded = recipes.load(folder / "tiny.yaml")
    told = loaded.model_dump(mode="json")
    assert "sft" not in told and all("learn" not in term for term in told["distill"]["objective"])
    asked = recipes.load(folder / "tiny.yaml", [f"distill.objective=[{json.dumps(ANSWERS)}]"])
    assert asked.training_hash != loaded.training_hash and "learn: answers" in asked.to_yaml()


def test_check_says_what_it_will_do(folder, tmp_path):
    long = [{"prompt": f"{i}", "response": "or " * 90} for i in range(8)]
    (folder / "long.jsonl").write_text("\n".join(map(json.dumps, long)))
    loaded = recipes.load(folder / "tiny.yaml", [SFT, *SHORT, "sft.sources=[{kind: chat, paths: [long.jsonl]}]"])
    found = check(Context(loaded, folder, tmp_path, Progress(quiet=True)))
    assert not found.problems, found.problems
    plan = dict(found.plan)
    assert plan["sft: before distillation"] == "6 steps of 128 tokens, loss on answers alone"
    assert "tokens of answers in" in plan["sft: dialogues"] and "1 dialogues apart" in plan["sft: dialogues"]
    assert "8 are longer than a row of 64" in plan["sft: dialogues"] and "sft: time" in plan


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sft.batch_tokens=100"], r"sft.batch_tokens \(100\) is no multiple of data.sequence \(32\)"),
        (["sft.stepz=1"], "did you mean 'steps'"),
        (["sft.sources=[{kind: text, paths: [learn.txt]}]"], "sft.sources"),
        (["sft.sources=[{kind: chat, paths: [chat.jsonl], decay_share: 1}]"], "decay_share is for the sources of data"),
        (["data.sources=[{kind: text, paths: [learn.txt]}]"], "data.sources holds no dialogues"),
        (["sft.lora={dropout: 0.1}", "distill.train.recompute=true"], "would drop other inputs"),
        (["sft=null", "data.sources=[{kind: text, paths: [learn.txt]}]",
          f"distill.objective=[{json.dumps(ANSWERS)}]"], "needs a chat or written source"),
    ],
)  # fmt: skip
def test_mistakes_of_a_recipe_are_sentences(folder, overrides, words):
    with pytest.raises(RecipeError, match=words):
        recipes.load(folder / "tiny.yaml", [SFT, *overrides])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sft.judge=[chat.jsonl]"], "16 of its prompts are trained on as well"),
        (["sft.judge=[none.jsonl]"], "no file matches 'none.jsonl'"),
        (["sft.sources=[{kind: chat, paths: [one.jsonl]}]"], "one prompt leaves none to judge by"),
        (["sft.sources=[{kind: chat, paths: [asked.jsonl]}]"], "no answer to train on begins"),
        (["distill.objective=[{loss: hidden, learn: answers}]"], "learn: answers is for losses on the output"),
        (["distill.objective=[{loss: forward_kl, learn: answers}]", "distill.on_policy={share: 0.5, prompt: 4}"],
         "what a student writes has no marked answers"),
    ],
)  # fmt: skip
def test_check_refuses_before_any_compute(folder, tmp_path, overrides, words):
    (folder / "one.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": "c"}')
    asked = [{"messages": [{"role": "user", "content": f"word {i}"}]} for i in range(3)]
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    chat_only = [] if any("sources" in o for o in overrides) else ["sft.sources=[{kind: chat, paths: [chat.jsonl]}]"]
    loaded = recipes.load(folder / "tiny.yaml", [SFT, *SHORT, *chat_only, *overrides])
    found = check(Context(loaded, folder, tmp_path, Progress(quiet=True)))
    assert any(words in problem for problem in found.problems), found.problems


def test_packaged_dialogues_to_judge_by_are_none_to_train_on():
    from edgeslm.recipe import expand

    def prompts(pattern: str) -> set[str]:
        rows = [row for path in expand([pattern], Path()) for row in chat.json_lines(path)]
        return {row.get("prompt", row.get("text")) or row["messages"][0]["content"] for row in rows}

    judged = prompts("package:chat/judge.jsonl")
    assert len(judged) == 16
    assert not judged & (prompts("package:chat/dialogues.jsonl") | prompts("package:chat/seeds.jsonl"))
    assert len(dialogues(expand(["package:chat/judge.jsonl"], Path()), tiny.tokenizer())) == 16


def test_a_student_that_got_worse_is_said_to(folder, tmp_path, capsys):
    loaded = recipes.load(folder / "tiny.yaml", [SFT, *SHORT, "sft.lr=3.0", "sft.clip=100"])
    run(loaded, folder, tmp_path, Progress(), until="sft")
    assert "sft: WARNING: fine-tuning made answers that it was not trained on worse" in capsys.readouterr().err
