"""Part II: a model larger than the memory of its device. The half that imports torch.

    from thesis_lib import memory

    with memory.open_streamed(folder, "8GiB") as model:
        model.generate(**prompt, max_new_tokens=20)  # transformers' own tokens

The names exported here are stable; modules behind them may move.
"""

import warnings

import lazy_loader

# transformers imports tqdm, which in a notebook asks for widgets that a printed book
# could not show.
warnings.filterwarnings("ignore", message="IProgress not found")

# The stub beside this file says where each name lives; one is imported when it is used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
