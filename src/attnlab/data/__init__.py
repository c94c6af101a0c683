"""Sources of tokens, one per file. Importing this package loads all of them.

Nothing here reads the clock or a device: the caller passes the folders of data and cache
(`Places`), and everything else follows from the settings and the text.
"""

from importlib import import_module
from pkgutil import iter_modules

from attnlab.data.source import Corpus, DataConfig, DataError, Places
from attnlab.data.tokenizer import Tokenizer

for _file in iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")

__all__ = ["Corpus", "DataConfig", "DataError", "Places", "Tokenizer"]
