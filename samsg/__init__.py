"""SAMSG, reproduced: self-attention-based masked spectrogram generation for speech emotion recognition.

Kim & Lee, "Self-Attention-Based Masked Spectrogram Generation and Self-Supervised Learning Method for Improving Speech
Emotion Recognition". The public names are listed in __init__.pyi and imported when they are first used, so that light
commands stay quick.
"""

import os
from importlib.metadata import version

import lazy_loader

# OpenMP's threads spin while they wait for each other, by default for long: beside another process, a training step is
# then many times slower. This shorter spin costs nothing when alone. It must be set before torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = version("samsg")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
