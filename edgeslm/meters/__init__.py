"""What is measured. A meter says what to sample and what the samples mean."""

from edgeslm.meters import energy, latency, memory

METERS = {"latency": latency.METER, "memory": memory.METER, "energy": energy.METER}
