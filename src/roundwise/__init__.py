"""Roundwise: quantize trained networks to 4-bit weights by choosing codes that keep each layer's outputs as they were.

    import roundwise as rw

    quantized = rw.quantize(model, images)
    print(quantized.report)
    quantized.save("model.rw")
    rw.export(quantized, "model.onnx")

The public names stand in `__init__.pyi`. Each is looked up when it is first used, so that `import roundwise` (and
`roundwise --help`) does not wait for PyTorch, and ONNX stays an optional extra.
"""

from importlib.metadata import version as _version

import lazy_loader as _lazy

__version__ = _version("roundwise")

_find, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """A public name, imported when it is first used."""
    try:
        return _find(name)
    except AttributeError as error:
        if name.startswith("_"):
            raise
        from roundwise.wording import did_you_mean

        raise AttributeError(f"roundwise has no '{name}'.{did_you_mean(name, __all__)}", name=name) from error
