"""A checkpoint folder: config, shards, and the digest of it all.

Two layouts: Hugging Face's (`config.json`, `model*.safetensors`) and, where it is all there is,
Mistral's own (`params.json`, `consolidated*.safetensors`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from edgekit_quantize.architectures import Config, native
from edgekit_quantize.errors import BadCheckpointError, IoFailedError, MissingFileError
from edgekit_quantize.safetensors import SafetensorsFile, StoredTensor
from edgekit_quantize.scales import find_scales

INDEX = "model.safetensors.index.json"
NATIVE_INDEX = "consolidated.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
MAX_JSON_BYTES = 128 << 20
MAX_JSON_BRACKETS = 1 << 22
"""The largest tokenizers are 35 MB with a million merges; an empty list costs 20 times its size."""

SIDE_FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tekken.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    INDEX,
    NATIVE_INDEX,
    native.LAYOUT,
)
_READ_BYTES = 4 << 20


def read_json(path: Path) -> dict[str, object]:
    """Return the object in a JSON file.

    Raises MissingFileError, IoFailedError, or BadCheckpointError (code `bad_json`).
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BadCheckpointError(f"{path.name} is far too large", code="bad_json")
        raw = path.read_bytes()
        if raw.count(b"[") + raw.count(b"{") > MAX_JSON_BRACKETS:
            raise BadCheckpointError(f"{path.name} holds far too many lists", code="bad_json")
        value = json.loads(raw.decode())
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path.name} is missing from {path.parent}",
            code="missing_file",
            hint="fetch the whole repository, not only its weights",
        ) from error
    except OSError as error:
        raise IoFailedError(f"cannot read {path}: {error.strerror}", code="io_error") from error
    except (ValueError, RecursionError) as error:
        raise BadCheckpointError(
            f"{path.name} is no valid JSON: {error}",
            code="bad_json",
            hint="fetch the file again",
        ) from error
    if not isinstance(value, dict):
        raise BadCheckpointError(f"{path.name} holds no JSON object", code="bad_json")
    return value


class Checkpoint:
    """An open checkpoint: config parsed, every shard's header checked, data mapped."""

    def __init__(self, folder: Path) -> None:
        """Open `folder`.

        Raises MissingFileError for what is not there, BadCheckpointError for what is wrong:
        the codes of SafetensorsFile, and `pickle_refused`, `index_mismatch`,
        `duplicate_tensor`, `bad_index`, `native_layout`.
        """
        if not folder.is_dir():
            raise MissingFileError(f"there is no folder {folder}", code="no_such_folder")
        self.folder = folder
        self.shards: list[SafetensorsFile] = []
        self.where: dict[str, SafetensorsFile] = {}
        self.is_native = _is_native(folder)
        shard_names, weight_map = _find_shards(folder, self.is_native)
        self.config: Config = (
            native.to_config(read_json(folder / native.LAYOUT))
            if self.is_native
            else read_json(folder / "config.json")
        )
        try:
            for name in shard_names:
                shard = SafetensorsFile(folder / name)
                self.shards.append(shard)
                for tensor in shard.tensors:
                    if tensor in self.where:
                        raise BadCheckpointError(
                            f"tensor {tensor!r} is stored in {self.where[tensor].path.name} and "
                            f"in {name}",
                            code="duplicate_tensor",
                        )
                    self.where[tensor] = shard
            if weight_map is not None:
                self._compare(weight_map)
            self.scales = find_scales(self.where.keys())
        except BaseException:
            self.close()
            raise

    def tensor(self, name: str) -> StoredTensor:
        return self.where[name].tensors[name]

    def close(self) -> None:
        for shard in self.shards:
            shard.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def files(self) -> list[Path]:
        """Return every file that has a say in the conversion, sorted by name."""
        side = [self.folder / name for name in SIDE_FILES if (self.folder / name).is_file()]
        return sorted([*side, *(shard.path for shard in self.shards)], key=lambda path: path.name)

    def _compare(self, weight_map: Mapping[str, str]) -> None:
        index = NATIVE_INDEX if self.is_native else INDEX
        for tensor, file in weight_map.items():
            shard = self.where.get(tensor)
            if shard is None or shard.path.name != file:
                raise BadCheckpointError(
                    f"{index} puts tensor {tensor!r} into {file}, which does not hold it",
                    code="index_mismatch",
                    hint="index and shards are of different revisions; fetch them together",
                )
        if extra := sorted(self.where.keys() - weight_map.keys()):
            raise BadCheckpointError(
                f"{index} does not name the stored tensor {extra[0]!r}",
                code="index_mismatch",
                hint="index and shards are of different revisions; fetch them together",
            )


def file_digests(
    paths: list[Path],
    known: Mapping[str, str],
    threads: int,
    progress: Callable[[int], None],
) -> dict[str, str]:
    """Return the sha256 of each file by its name; files in `known` are not read again.

    `progress` gets the number of bytes hashed since the last call. Raises IoFailedError.
    """

    def digest(path: Path) -> str:
        if path.name in known:
            return known[path.name]
        sha = hashlib.sha256()
        buffer = memoryview(bytearray(_READ_BYTES))
        try:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    sha.update(buffer[:count])
                    progress(count)
        except OSError as error:
            raise IoFailedError(f"cannot read {path}: {error.strerror}", code="io_error") from error
        return sha.hexdigest()

    with ThreadPoolExecutor(max_workers=threads) as pool:
        try:
            return dict(zip((p.name for p in paths), pool.map(digest, paths), strict=True))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _is_native(folder: Path) -> bool:
    """Hugging Face's layout wins where both are there."""
    if (folder / INDEX).is_file() or any(folder.glob("model*.safetensors")):
        return False
    return (folder / native.LAYOUT).is_file() and any(folder.glob("consolidated*.safetensors"))


def _find_shards(folder: Path, is_native: bool) -> tuple[list[str], dict[str, str] | None]:
    """Return the shard names, and the index's tensor map if there is an index."""
    index = NATIVE_INDEX if is_native else INDEX
    if (folder / index).is_file():
        weight_map = read_json(folder / index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise BadCheckpointError(f"{index} has no weight_map", code="bad_index")
        for name in weight_map.values():
            if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]+\.safetensors", name):
                raise BadCheckpointError(
                    f"{index} names the shard {name!r}, which is no plain file name",
                    code="bad_index",
                )
        return sorted(set(weight_map.values())), weight_map
    prefix = "consolidated" if is_native else "model"
    names = sorted(path.name for path in folder.glob(f"{prefix}*.safetensors"))
    if names:
        _check_count(names, prefix)
        return names, None
    others = sorted(path.name for path in folder.iterdir())
    if any(name.endswith(".safetensors") for name in others):
        raise BadCheckpointError(
            "the folder holds safetensors, but none called model*.safetensors",
            code="native_layout",
            hint="fetch the repository's model*.safetensors and config.json as well, or the "
            "params.json that belongs to consolidated*.safetensors",
        )
    if pickled := [name for name in others if name.endswith(PICKLED)]:
        raise BadCheckpointError(
            f"{pickled[0]} holds pickled weights, which can run code when read; edgekit never "
            "loads them",
            code="pickle_refused",
            hint="use a revision of the model with safetensors weights",
        )
    raise MissingFileError(
        f"{folder} holds no model*.safetensors",
        code="no_weights",
        hint="point at the folder with config.json and the safetensors shards",
    )


def _check_count(names: list[str], prefix: str) -> None:
    """Without an index, `model-00001-of-00003` still says how many shards there must be."""
    for name in names:
        if match := re.fullmatch(prefix + r"-(\d{5})-of-(\d{5})\.safetensors", name):
            total = int(match[2])
            for i in range(1, total + 1):
                wanted = f"{prefix}-{i:05d}-of-{total:05d}.safetensors"
                if wanted not in names:
                    raise MissingFileError(
                        f"{wanted} is missing",
                        code="missing_shard",
                        hint="fetch the checkpoint again; it is incomplete",
                    )
