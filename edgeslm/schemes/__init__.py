"""How knowledge is transferred: short loops around the one step."""

from edgeslm.schemes import offline

SCHEMES = {"offline": offline.run}
