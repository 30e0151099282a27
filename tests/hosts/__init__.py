"""The command line against real hosts of the lab."""
