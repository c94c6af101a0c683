"""Sources of data: one file per source. Importing this package loads all of them.

The only environment variables that are read are those of `Places.from_environment`. Everything else
follows from the settings and the text.
"""

from importlib import import_module
from pkgutil import iter_modules

from attnlab.data.source import Corpus, DataConfig, DataError, Examples, Places
from attnlab.data.tokenizer import Tokenizer

for _file in iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")

__all__ = ["Corpus", "DataConfig", "DataError", "Examples", "Places", "Tokenizer"]
