"""Who gives: functions from a batch of ids to `Signals`."""
