"""The rows of `benchmarks.methods`: every method of the toolkit as the change it makes to one base recipe.

A row is {dotted key of the recipe: value}. `ADDED` losses stand beside forward_kl with a weight that gives them `SHARE`
of its gradient when training starts (forward_kl's own falls ten times within the first steps), so that no row is better
for a luckier weight.
"""

from __future__ import annotations

from typing import Any

from edgeslm.recipe.parts import DEFAULT_TEACHER

Changes = dict[str, Any]

SHARE = 0.03
ADVERSARY_WEIGHT = 0.1  # of a discriminator's word beside forward_kl's 1
KL: Changes = {"loss": "forward_kl"}
TEXT: Changes = {"loss": "cross_entropy"}
ASSISTANT, FIRST = "methods-assistant_made", "methods-forward_kl"  # runs that other rows start from


def objective(*terms: Changes) -> Changes:
    return {"distill.objective": list(terms)}


def scheme(kind: str, *terms: Changes, **options: Any) -> Changes:
    return {"distill.scheme": {"kind": kind, **options}, **(objective(*terms) if terms else {})}


RESPONSE: dict[str, Changes] = {
    "text": objective(TEXT),
    "forward_kl": objective(KL),
    "forward_kl_t2": objective({**KL, "temperature": 2.0}),
    "reverse_kl": objective({"loss": "reverse_kl"}),
    "jsd": objective({"loss": "jsd", "beta": 0.5}),
    "skew_kl": objective({"loss": "skew_kl", "alpha": 0.1}),
    "skew_reverse_kl": objective({"loss": "skew_reverse_kl", "alpha": 0.1}),
    "alpha_beta": objective({"loss": "alpha_beta", "alpha": 0.2, "beta": 0.7}),
    "tvd": objective({"loss": "tvd"}),
    "confidence_mix": objective({"loss": "confidence_mix"}),
    "entropy_mix": objective({"loss": "entropy_mix"}),
    "kl_and_text": objective({**KL, "weight": 0.9}, {**TEXT, "weight": 0.1}),
    "label_smoothing": objective({**TEXT, "label_smoothing": 0.1}),
    "teacher_free": objective({"loss": "teacher_free", "confidence": 0.9}),
    "logit_mse": objective({"loss": "logit_mse", "weight": 0.1}),
    "uld": objective({"loss": "uld"}),
}

# loss beside forward_kl -> its options
ADDED: dict[str, Changes] = {
    "logit_discriminator": {},
    "hidden": {},
    "hidden_normalised": {"loss": "hidden", "normalise": True},
    "hidden_many_to_one": {"loss": "hidden", "layers": [[2, [1, 2]], [4, [3, 4]], [6, [5, 6]]]},
    "cosine": {},
    "attention_transfer": {},
    "attention_maps": {},
    "minilm": {},
    "neuron_selectivity": {},
    "probabilistic": {},
    "factor_transfer": {},
    "activation_boundary": {},
    "cross_layer": {},
    "feature_discriminator": {},
    "rkd_distance": {},
    "rkd_angle": {},
    "similarity": {},
    "correlation_congruence": {},
    "locality": {},
    "svd_correlation": {},
    "fsp": {},
    "instance_graph": {},
    "layer_graph": {},
    "information_flow": {},
}

WRITTEN: Changes = {"kind": "written", "rows": 1664, "max_new": 124, "batch": 128}
LIVE: list[Changes] = [KL, {**TEXT, "weight": 1.0}]
SCHEMES: dict[str, Changes] = {
    "recorded_topk": {"distill.targets": {"kind": "topk", "k": 24}},
    "recorded_sampled": {"distill.targets": {"kind": "sampled", "keep": 16, "samples": 16}},
    "recorded_drawn": {"distill.targets": {"kind": "sampled", "keep": 0, "samples": 48}},
    "on_policy": {"distill.on_policy": {"share": 0.25, "prompt": 32}},
    "mixed_policy": {"distill.on_policy": {"share": 0.25, "prompt": 32, "teacher_share": 0.2}},
    "written_to_differ": {"distill.on_policy": {"share": 0.25, "prompt": 32, "candidates": 2}},
    "sequence_level": {
        "data.sources": [{**WRITTEN, "seeds": ["package:chat/stories.jsonl"]}],
        **objective(TEXT),
    },
    "data_free": {"data.sources": [{**WRITTEN, "seeds": ["package:chat/starts.jsonl"]}]},
    "data_free_adversary": {
        "data.sources": [{**WRITTEN, "seeds": ["package:chat/starts.jsonl"], "rows": 128}],
        "distill.on_policy": {"share": 1.0, "prompt": 4, "contrast": 0.5},
    },
    "other_vocabulary": {
        "teacher.more": [{"model": DEFAULT_TEACHER, "other_vocabulary": True}],
        **objective(TEXT, {"loss": "uld", "teacher": 1}),
    },
    "online_mean": scheme("online", *LIVE, peers=2),
    "online_ensemble": scheme("online", *LIVE, peers=2, learn_from="ensemble"),
    "online_leader": scheme("online", *LIVE, peers=2, learn_from="leader"),
    "online_written": {
        **scheme("online", *LIVE, peers=2),
        "distill.on_policy": {"share": 0.25, "prompt": 32, "candidates": 2},
    },
    "online_with_teacher": scheme("online", KL, peers=2, outer_share=0.7),
    "self_average": scheme("self", *LIVE),
    "self_snapshot": scheme("self", *LIVE, teacher="snapshot", every=40),
    "self_deep": scheme("self", KL, teacher="deep", exits=[3, 5]),
    "born_again": {"teacher.model": f"run:{FIRST}-s0", "teacher.tokenizer": None},
    "assistant": {"teacher.model": f"run:{ASSISTANT}-s0", "teacher.tokenizer": None},
    "early_teacher": {"teacher.model": f"run:{ASSISTANT}-s0@2", "teacher.tokenizer": None},
    "residual": scheme("residual", base=f"run:{FIRST}-s0"),
    "teachers_mean": {"teacher.more": [{"model": f"run:{ASSISTANT}-s0"}]},
    "teachers_sample": {"teacher.more": [{"model": f"run:{ASSISTANT}-s0"}], "teacher.combine": "sample"},
    "teachers_token": {"teacher.more": [{"model": f"run:{ASSISTANT}-s0"}], "teacher.combine": "token"},
    "teachers_features": {
        "teacher.more": [{"model": f"run:{ASSISTANT}-s0"}],
        **objective(KL, {"loss": "hidden", "weight": 0.1}, {"loss": "hidden", "weight": 0.1, "teacher": 1}),
    },
    "route": scheme("route", anchors=[f"run:{ASSISTANT}-s0@1", f"run:{ASSISTANT}-s0@3"]),
    "blockwise": scheme("blockwise", blocks=3, share=0.3),
}

# runs that rows start from, made first; the assistant stands between teacher and student in size
BEFORE: dict[str, Changes] = {
    "assistant_made": {
        "name": f"{ASSISTANT}-s0",
        "student": {"kind": "width", "hidden": 192, "heads": 4, "kv_heads": 4, "ffn": 512},
        "distill.train.keep": 3,
    },
}

FAMILIES = {
    **dict.fromkeys(RESPONSE, "response"),
    **dict.fromkeys(ADDED, "layers"),
    **dict.fromkeys(SCHEMES, "scheme"),
    **dict.fromkeys(BEFORE, "before"),
}
NAMES = [*BEFORE, *RESPONSE, *ADDED, *SCHEMES]


def changes(name: str) -> Changes:
    """What row `name` changes; an added loss still without its weight."""
    if name not in ADDED:
        return {**RESPONSE, **SCHEMES, **BEFORE}[name]
    extra = {"loss": name, **ADDED[name]}
    return objective(KL, extra) | ({"distill.train.attention": "eager"} if name == "attention_maps" else {})
