"""The hot methods for a CPU, each fused into one pass over a block: the bytes the torch definitions give, much faster.

Needs numba. A kernel reads a block as it is stored (bfloat16 as uint16, or float32), works through it in tiles that
stay in a core's first cache, and rounds after every operation as torch does, so that nothing differs in the last bit.
"""
