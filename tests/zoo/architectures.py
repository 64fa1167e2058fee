"""All networks of the zoo, by source and name."""

from huggingface import DIFFUSERS, TRANSFORMERS
from plain import PLAIN
from vision import TIMM, TORCHVISION

ARCHITECTURES = {
    f"{entry.source}: {entry.name}": entry for entry in (*PLAIN, *TORCHVISION, *TIMM, *TRANSFORMERS, *DIFFUSERS)
}
