"""Writes src/codebooks.bin: the grids of GGUF's types IQ1 to IQ3, a signed byte a value, in the order of blocks.rs.

usage: pip install gguf && python codebooks.py
"""
import pathlib

import gguf
import numpy as np

with open(pathlib.Path(__file__).parent / "src" / "codebooks.bin", "wb") as f:
    for name in ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"]:
        kind = getattr(gguf.quants, name)
        kind.init_grid()
        grid = kind.grid.reshape(-1)
        assert (grid == grid.astype(np.int8)).all()
        f.write(grid.astype(np.int8).tobytes())
