"""How good reconstructions and samples are."""
