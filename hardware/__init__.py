"""Devices: cameras, arms, and the simulated robot."""
