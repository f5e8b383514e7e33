"""The stages of an encoder's recipe, in order."""

from edgeslm.pipeline.encoder.making import DATA, DISTILL, STUDENT, TEACHER, TUNE
from edgeslm.pipeline.encoder.ship import EVALUATE, EXPORT

ENCODER_STAGES = (TEACHER, DATA, TUNE, STUDENT, DISTILL, EXPORT, EVALUATE)
