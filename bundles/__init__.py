"""Policy bundles of this repository and their public keys."""
