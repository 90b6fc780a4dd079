"""SAMSG, reproduced: self-attention-based masked spectrogram generation for speech emotion recognition.

Kim & Lee, "Self-Attention-Based Masked Spectrogram Generation and Self-Supervised Learning Method for Improving Speech
Emotion Recognition". The public names are listed in __init__.pyi and imported when they are first used, so that light
commands stay quick.
"""

import os
from importlib.metadata import version

import lazy_loader

# OpenMP's threads wait for each other spinning, unless told otherwise before torch is loaded: as soon as another
# process wants a core, that makes a training step many times slower. Sleeping costs nothing on an idle machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = version("samsg")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
