"""How knowledge is transferred: short loops around the one step."""

from edgeslm.schemes import blockwise, codistill, offline, online, route, self_taught

SCHEMES = {
    "offline": offline.run,
    "residual": offline.run,  # what differs is the step: an earlier student's logits are added to the student's
    "online": online.run,
    "self": self_taught.run,
    "route": route.run,
    "blockwise": blockwise.run,
    "codistill": codistill.run,
}
