"""Who gives: functions from a batch and what is needed of it to `Signals`."""
