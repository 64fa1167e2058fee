"""Methods: one file each, one table per kind. Each folder is a name of the package: `rw.rounding.GPTQ`."""

from roundwise.methods import activations, compression, corrections, ranges, rewrites, rounding, training

__all__ = ["activations", "compression", "corrections", "ranges", "rewrites", "rounding", "training"]
