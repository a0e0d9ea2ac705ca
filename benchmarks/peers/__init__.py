"""Peers' real packages on the peers' own work, each in an environment of its own."""
