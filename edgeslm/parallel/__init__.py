"""The same training on several processes that torchrun starts: replicas of the student, or shards of it."""

from edgeslm.parallel.ranks import ALONE, Ranks, join, leave, size

__all__ = ["ALONE", "Ranks", "join", "leave", "size"]
