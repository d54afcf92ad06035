"""The simulated robot: physics, camera, servo bus, tasks, experts."""
