"""Who gives: functions from a batch of ids to `Signals`."""

TEACHERS = {"live": "edgeslm.teachers.live:LiveTeacher"}
