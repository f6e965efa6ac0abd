"""What the bus, the hub and the hooks cost, each beside its plain alternative in one process."""
