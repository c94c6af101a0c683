"""Versions of installed packages, attnlab's own among them."""

from importlib.metadata import PackageNotFoundError, version


def package_version(name: str) -> str | None:
    """Version of an installed package, None where there is none. Nothing is imported."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


__version__ = package_version("attnlab") or "0+source"  # the latter where it runs from source
