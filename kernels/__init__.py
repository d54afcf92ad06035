"""Kernels: arrays in, arrays out; compiled, no GIL, no allocation. They import nothing of dzedge."""
