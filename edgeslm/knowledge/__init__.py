"""What is transferred. A new loss is a function in its family's file and a line here; its keyword arguments are its
recipe options, their annotations what may be given."""

from edgeslm.knowledge import response
from edgeslm.knowledge.base import Response

LOSSES: dict[str, Response] = {
    "forward_kl": Response(response.forward_kl, True, "arXiv:1503.02531", response.forward_kl_fused),
    "cross_entropy": Response(response.cross_entropy, False, "maximum likelihood on the text"),
}
