"""What is transferred. A new loss is a function in its family's file and a line here; its keyword arguments are its
recipe options, their annotations what may be given."""

from edgeslm.knowledge import adversarial as adv
from edgeslm.knowledge import divergences as div
from edgeslm.knowledge import feature as feat
from edgeslm.knowledge import flow, transfer
from edgeslm.knowledge import relation as rel
from edgeslm.knowledge import response as out
from edgeslm.knowledge.base import Feature, Loss, Response

_H, _A, _QKV = ("hidden",), ("attention",), ("query", "key", "value")

LOSSES: dict[str, Loss] = {
    # output distribution
    "forward_kl": Response(out.forward_kl, True, "arXiv:1503.02531", out.forward_kl_fused, coarse=True),
    "reverse_kl": Response(out.reverse_kl, True, "arXiv:2306.08543", out.reverse_kl_fused, coarse=True),
    "jsd": Response(div.jsd, True, "arXiv:2306.13649", coarse=True),
    "skew_kl": Response(div.skew_kl, True, "arXiv:2402.03898", coarse=True),
    "skew_reverse_kl": Response(div.skew_reverse_kl, True, "arXiv:2402.03898", coarse=True),
    "alpha_beta": Response(div.alpha_beta, True, "arXiv:2505.04560"),
    "tvd": Response(div.tvd, True, "arXiv:2307.15190", coarse=True),
    # mixes of f-divergences, but their weights are of the whole distribution, so not coarse
    "confidence_mix": Response(div.confidence_mix, True, "arXiv:2402.10631"),
    "entropy_mix": Response(div.entropy_mix, True, "arXiv:2605.04062"),
    "soft_cross_entropy": Response(out.soft_cross_entropy, True, "arXiv:1804.03235", out.soft_cross_entropy_fused),
    "cross_entropy": Response(out.cross_entropy, False, "maximum likelihood on the text", out.cross_entropy_fused),
    "teacher_free": Response(out.teacher_free, False, "arXiv:1909.11723"),
    "logit_mse": Response(out.logit_mse, True, "arXiv:1903.12136"),
    "uld": Response(out.uld, True, "arXiv:2402.12030"),
    "logit_discriminator": Response(
        adv.logit_discriminator, True, "arXiv:1709.00513", init=adv.init_logit_discriminator, judge=adv.judge_logits
    ),
    # what layers hold
    "hidden": Feature(feat.hidden, _H, "arXiv:1412.6550, 1908.09355", init=feat.init_projection),
    "cosine": Feature(feat.cosine, _H, "arXiv:1910.01108", init=feat.init_projection),
    "attention_transfer": Feature(feat.attention_transfer, _H, "arXiv:1612.03928"),
    "attention_maps": Feature(feat.attention_maps, _A, "arXiv:1909.10351"),
    "minilm": Feature(feat.minilm, _QKV, "arXiv:2002.10957, 2012.15828", "last"),
    "neuron_selectivity": Feature(transfer.neuron_selectivity, _H, "arXiv:1707.01219", "last"),
    "probabilistic": Feature(transfer.probabilistic, _H, "arXiv:1803.10837", "last"),
    "factor_transfer": Feature(transfer.factor_transfer, _H, "arXiv:1802.04977", "last", init=transfer.init_factor),
    "activation_boundary": Feature(transfer.activation_boundary, _H, "arXiv:1811.03233", init=feat.init_projection),
    "cross_layer": Feature(transfer.cross_layer, _H, "arXiv:2012.03236", joint=True, init=transfer.init_cross_layer),
    "feature_discriminator": Feature(
        adv.feature_discriminator,
        _H,
        "arXiv:1803.10750",
        "last",
        init=adv.init_feature_discriminator,
        judge=adv.judge_features,
    ),
    # relations among samples
    "rkd_distance": Feature(rel.rkd_distance, _H, "arXiv:1904.05068", "last"),
    "rkd_angle": Feature(rel.rkd_angle, _H, "arXiv:1904.05068", "last"),
    "similarity": Feature(rel.similarity, _H, "arXiv:1907.09682", "last"),
    "correlation_congruence": Feature(rel.correlation_congruence, _H, "arXiv:1904.01802", "last"),
    "locality": Feature(rel.locality, _H, "arXiv:1812.01819", "last"),
    # relations among layers
    "svd_correlation": Feature(flow.svd_correlation, _H, "arXiv:1807.06819"),
    "fsp": Feature(flow.fsp, _H, "Yim et al., CVPR 2017", joint=True, init=feat.init_projection),
    "instance_graph": Feature(flow.instance_graph, _H, "Liu et al., CVPR 2019", joint=True, init=feat.init_projection),
    "layer_graph": Feature(flow.layer_graph, _H, "arXiv:1907.02226", joint=True),
    "information_flow": Feature(flow.information_flow, _H, "arXiv:2005.00727", joint=True),
}
