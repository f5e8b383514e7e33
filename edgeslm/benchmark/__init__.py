"""Files timed and weighed on a device, all with the same job."""
