"""Where the tokens come from: one file, one source. Importing this package loads them all.

Nothing here reads an environment variable, the clock or a device: the caller says where data and
cache are (`Places`), and everything else follows from the settings and the text.
"""

from importlib import import_module
from pkgutil import iter_modules

from attnlab.data.source import Corpus, DataConfig, DataError, Places
from attnlab.data.tokenizer import Tokenizer

for _file in iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")

__all__ = ["Corpus", "DataConfig", "DataError", "Places", "Tokenizer"]
