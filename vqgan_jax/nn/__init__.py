"""Flax modules with plain fields; they know no config and no training.

Dimension letters, everywhere: `b` batch, `H W` image, `h w` latent grid, `c` channels, `d` code width,
`k` codebook size, `t s` target and source position, `m` model width, `n p` heads and the width of one,
`v` vocabulary.
"""
