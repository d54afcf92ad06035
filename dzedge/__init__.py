"""dzedge: the edge runtime for World Action Models."""

__version__ = "0.1.0"
