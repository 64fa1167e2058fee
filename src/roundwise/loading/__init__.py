"""Find a network by its name, fill it with weights, and run it.

models    which network a name means: of a collection, of a Python file, or a program of torch.export
weights   trained weights from a file, without running anything in it
runnable  whatever can be run on a batch of inputs: a network by its name, a .rw file, a file of a runtime

What a network needs is read from files of other people, so every error says which file or name it is about.
"""

from roundwise.loading.models import LoadedModel, load_model, stated_preprocessing
from roundwise.loading.runnable import Runnable, open_runnable
from roundwise.loading.weights import FromFile, Pretrained, Random, WeightSource

__all__ = [
    "FromFile",
    "LoadedModel",
    "Pretrained",
    "Random",
    "Runnable",
    "WeightSource",
    "load_model",
    "open_runnable",
    "stated_preprocessing",
]
