"""WikiText-2: two million words of good and featured Wikipedia articles.

This is the word-level edition, in which rare words are `<unk>` and punctuation is separated by
spaces. Every split is one document. Merity et al. 2016 (arXiv:1609.07843).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from attnlab.data.documents import read_text
from attnlab.data.named_files import SPLITS
from attnlab.data.places import DataError, Places
from attnlab.data.source import DataConfig, Texts
from attnlab.data.tokenizer import BPE, Tokenizer

HUB = ("Salesforce/wikitext", "wikitext-2-v1")
HUB_PAGE = f"https://huggingface.co/datasets/{HUB[0]} ({HUB[1]})"


@dataclass(frozen=True, kw_only=True)
class WikiText2(DataConfig):
    """WikiText-2 from `path`, else the data folder, its wikitext-2 or wikitext2, else the hub.

    The folder holds train, valid and test as .txt, as .txt.gz, or as wiki.train.tokens and so on.
    """

    path: str | None = None
    tokenizer: Tokenizer = field(default_factory=lambda: BPE(vocab_size=32_000))

    @classmethod
    def name(cls) -> str:
        return "wikitext2"

    def texts(self, places: Places) -> Texts:
        folders, remedy = self._folders(places)
        for folder in folders:
            files = [_file_of(split, folder) for split in SPLITS]
            if None not in files:
                found = [file for file in files if file is not None]
                train, valid, test = ([read_text(file)] for file in found)
                origin = ", ".join(file.name for file in found)
                return Texts(train=train, valid=valid, test=test, origin=origin)
        tried: list[object] = [f"{folder}  (train, valid and test)" for folder in folders]
        if self.path is None:
            try:
                return _from_hub()
            except ImportError:
                tried.append("the Hugging Face hub  (the package datasets is not installed)")
                remedy += "; or let it be downloaded, after: pip install datasets"
            except (OSError, ValueError) as error:
                reason = " ".join(str(error).split())[:200]
                tried.append(f"the Hugging Face hub  ({reason})")
        raise DataError.missing("WikiText-2", tried, f"{remedy}. It comes from {HUB_PAGE}")

    def _folders(self, places: Places) -> tuple[list[Path], str]:
        remedy = (
            "Put train.txt, valid.txt and test.txt (or .txt.gz) into a folder and name it with "
        )
        if self.path is not None:
            return [Path(self.path).expanduser()], f"{remedy}data.path=DIR"
        names = ("", "wikitext-2", "wikitext2")
        folders = [places.data / name for name in names] if places.data else []
        return folders, f"{remedy}data.path=DIR or ATTNLAB_DATA=DIR"


def _file_of(split: str, folder: Path) -> Path | None:
    names = (f"{split}.txt", f"{split}.txt.gz", f"wiki.{split}.tokens")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _from_hub() -> Texts:
    """Download the same bytes as in the files. Raises ImportError, or the download's error."""
    splits: Mapping[str, Iterable[Mapping[str, Any]]] = import_module("datasets").load_dataset(*HUB)
    # blank lines are empty on the hub, and one space in the files
    train, valid, test = (
        ["".join(row["text"] or " \n" for row in splits[split])]
        for split in ("train", "validation", "test")
    )
    return Texts(train=train, valid=valid, test=test, origin=f"Hugging Face hub, {' '.join(HUB)}")
