"""dsprov: from bare servers to an appliance that people can chat with."""
