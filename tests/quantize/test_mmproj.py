"""Vision parts: llama.cpp's own picture embeddings against transformers', and what is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_quantize import convert, read_header
from edgekit_quantize.architectures.towers import Images
from edgekit_quantize.architectures.vision import tower
from edgekit_quantize.errors import BadCheckpointError, UnknownFileTypeError
from edgekit_quantize.gguf_header import GgufTensor
from edgekit_quantize.gguf_write import encode_header
from tests.support import tiny_models
from tests.support.checkpoints import write_safetensors
from tests.support.cli import Cli
from tests.support.dense_models import DENSE
from tests.support.native_layout import read_tensors, write_native
from tests.support.vision_oracle import mtmd_features, transformers_features

PIXTRAL = "mistral3: ministral, tied, vision"
GEMMA = "gemma3: linear rope, vision"
PICTURES = {PIXTRAL: (128, 160), GEMMA: (56, 56)}


def save(model: str, folder: Path, seed: int = 0, **options: Any) -> Path:
    tiny_models.save(DENSE[model], folder, seed, **options)
    colours = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "image_seq_length": 4}
    (folder / "preprocessor_config.json").write_text(json.dumps(colours))
    return folder


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    header, raw = read_header(path), path.read_bytes()

    def data(tensor: GgufTensor) -> bytes:
        start = header.data_offset + tensor.offset
        return raw[start : start + tensor.bytes]

    return {t.name: (t.type.name, t.shape, data(t)) for t in header.tensors}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("model", PICTURES)
def test_picture_embeddings_are_transformers(model: str, seed: int, tmp_path: Path) -> None:
    folder = save(model, tmp_path / "c", seed)
    convert(folder, tmp_path / "m.gguf", "F32", threads=1)
    convert(folder, tmp_path / "v.gguf", "F16", threads=1, vision=True)
    height, width = PICTURES[model]
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    ours = mtmd_features(tmp_path / "m.gguf", tmp_path / "v.gguf", picture)
    theirs = transformers_features(folder, picture, 0.5, 0.25)
    if model == PIXTRAL:
        # Each row of picture tokens but the last ends with the text model's [IMG_BREAK].
        in_row = width // 32 + 1
        ends = [i for i in range(len(ours)) if (i + 1) % in_row == 0]
        embedding = read_tensors(folder)["language_model.model.embed_tokens.weight"]
        rows = np.frombuffer(embedding[2], np.float32).reshape(embedding[1])
        np.testing.assert_allclose(ours[ends], np.tile(rows[12], (len(ends), 1)), atol=1e-6)
        ours = np.delete(ours, ends, axis=0)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 2e-3 * (theirs.max() - theirs.min())


def test_keys_and_types(tmp_path: Path) -> None:
    """As llama.cpp's converter writes them; only the order of general.file_type is ours."""
    done = convert(save(PIXTRAL, tmp_path / "p"), tmp_path / "p.gguf", "BF16", vision=True)
    assert any("preprocessor_config.json" in reason for reason in done.reasons)
    keys = read_header(done.path).metadata
    assert {k: v for k, v in keys.items() if k.startswith(("clip.", "general.type"))} == {
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.vision.projection_dim": 64,
        "clip.vision.image_size": 256,
        "clip.vision.patch_size": 16,
        "clip.vision.embedding_length": 32,
        "clip.vision.feed_forward_length": 64,
        "clip.vision.block_count": 3,
        "clip.vision.attention.head_count": 2,
        "clip.vision.image_mean": (0.5, 0.5, 0.5),
        "clip.vision.image_std": (0.25, 0.25, 0.25),
        "clip.projector_type": "pixtral",
        "clip.vision.attention.layer_norm_epsilon": pytest.approx(1e-5),
        "clip.use_gelu": True,
        "clip.vision.spatial_merge_size": 2,
    }
    found = tensors(done.path)
    assert found["v.patch_embd.weight"][:2] == ("F32", (16, 16, 3, 32))
    assert found["mm.patch_merger.weight"][:2] == ("F32", (128, 32))
    assert found["v.blk.2.attn_q.weight"][:2] == ("BF16", (32, 32))
    assert found["v.token_embd.img_break"][:2] == ("F32", (64,))
    gemma = convert(save(GEMMA, tmp_path / "g"), tmp_path / "g.gguf", "BF16", vision=True)
    keys = read_header(gemma.path).metadata
    assert keys["clip.projector_type"] == "gemma3"
    assert keys["clip.vision.projector.scale_factor"] == 2
    found = tensors(gemma.path)
    assert found["mm.input_projection.weight"][:2] == ("F16", (64, 32))
    assert found["v.position_embd.weight"][:2] == ("F32", (32, 16))
    assert found["v.patch_embd.weight"][0] == "F32"
    assert found["v.blk.0.ffn_up.weight"][:2] == ("BF16", (32, 64))
    assert found["v.post_ln.bias"][:2] == ("F32", (32,))


def test_older_names_are_the_same_tower(tmp_path: Path) -> None:
    folder = save(GEMMA, tmp_path / "c")
    new = convert(folder, tmp_path / "new.gguf", "F16", vision=True)
    renamed = {
        name.replace("vision_tower.", "vision_tower.vision_model."): tensor
        for name, tensor in read_tensors(folder).items()
    }
    write_safetensors(folder / "model.safetensors", renamed)
    old = convert(folder, tmp_path / "old.gguf", "F16", vision=True)
    assert tensors(new.path) == tensors(old.path)


def test_the_native_layout_gives_the_same_tower(tmp_path: Path) -> None:
    changes = {"vision_config": {**DENSE[PIXTRAL]["vision_config"], "hidden_act": "silu"}}
    twin = tiny_models.save({**DENSE[PIXTRAL], **changes}, tmp_path / "hf", 5)
    one = convert(twin, tmp_path / "hf.gguf", "F16", vision=True, name="Same")
    vision = {
        **{
            k: v for k, v in changes["vision_config"].items() if k not in ("model_type", "head_dim")
        },
        "rope_theta": 10000.0,
        "mm_projector_id": "patch_merge",
        "spatial_merge_size": 2,
        "adapter_bias": False,
    }
    params = {
        "dim": 64, "n_layers": 3, "head_dim": 32, "hidden_dim": 96, "n_heads": 4, "n_kv_heads": 2,
        "rope_theta": 10000.0, "norm_eps": 1e-05, "vocab_size": 300, "tied_embeddings": True,
        "max_position_embeddings": 262144, "vision_encoder": vision,
    }  # fmt: skip
    native = write_native(twin, tmp_path / "native", params)
    other = convert(native, tmp_path / "native.gguf", "F16", vision=True, name="Same")
    assert tensors(one.path) == tensors(other.path)
    ours, theirs = dict(read_header(one.path).metadata), dict(read_header(other.path).metadata)
    assert ours.pop("edgekit.source.digest") != theirs.pop("edgekit.source.digest")
    assert ours == theirs


@pytest.mark.parametrize(
    ("model", "changes", "code"),
    [
        ("qwen3", {}, "no_vision"),
        (PIXTRAL, {"architectures": ["Llama4ForConditionalGeneration"]}, "no_vision"),
        (PIXTRAL, {"vision_feature_layer": -2}, "bad_config"),
        (PIXTRAL, {"spatial_merge_size": 0}, "bad_config"),
        (PIXTRAL, {"spatial_merge_size": 4}, "bad_shape"),
        (PIXTRAL, {"multimodal_projector_bias": True}, "missing_tensor"),
        (
            GEMMA,
            {"vision_config": {**DENSE[GEMMA]["vision_config"], "patch_size": 28}},
            "bad_shape",
        ),
    ],
)
def test_what_is_refused(model: str, changes: dict[str, Any], code: str, tmp_path: Path) -> None:
    folder = save(model, tmp_path / "c")
    tiny_models.edit_config(folder, changes)
    with pytest.raises(BadCheckpointError) as caught:
        convert(folder, tmp_path / "v.gguf", "F16", vision=True)
    assert caught.value.code == code
    assert not (tmp_path / "v.gguf").exists()


def test_block_types_and_broken_settings(tmp_path: Path) -> None:
    folder = save(PIXTRAL, tmp_path / "c")
    with pytest.raises(UnknownFileTypeError) as unknown:
        convert(folder, tmp_path / "v.gguf", "Q8_0", vision=True)
    assert unknown.value.code == "vision_filetype"
    settings_file = folder / "preprocessor_config.json"
    for mean in ([0.5], "grey", [0.5, 0.5, True], [0.5, 0.5, None]):
        settings_file.write_text(json.dumps({"image_mean": mean}))
        with pytest.raises(BadCheckpointError) as caught:
            convert(folder, tmp_path / "v.gguf", "F16", vision=True)
        assert caught.value.code == "bad_config"
    settings_file.unlink()
    done = convert(folder, tmp_path / "v.gguf", "F16", vision=True)
    assert any("defaults" in reason for reason in done.reasons)
    assert read_header(done.path).metadata["clip.vision.image_mean"] == pytest.approx(
        (0.48145466, 0.4578275, 0.40821073)
    )


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, 2, 3, 4, 2**31 - 1, 2**31]),
    st.floats(),
    st.sampled_from(["", "silu", [], {}, [1], {"rope_theta": "x"}]),
)
FIELDS = [
    *((None, key) for key in ("vision_feature_layer", "spatial_merge_size", "vision_config")),
    (None, "projector_hidden_act"),
    (None, "multimodal_projector_bias"),
    ("text_config", "hidden_size"),
    *(("vision_config", key) for key in (*DENSE[PIXTRAL]["vision_config"], "rope_parameters")),
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([PIXTRAL, GEMMA]), st.lists(st.tuples(st.sampled_from(FIELDS), HOSTILE)))
def test_hostile_configs(model: str, changes: list[tuple[tuple[str | None, str], Any]]) -> None:
    config = copy.deepcopy(DENSE[model])
    for (outer, key), value in changes:
        target = config if outer is None else config[outer]
        if isinstance(target, dict):
            target[key] = value
    images = Images((0.5,) * 3, (0.5,) * 3, tokens_per_image=4, break_token=12)
    refused: BadCheckpointError | None = None
    try:
        tower(config, [], images)
    except BadCheckpointError as error:
        refused = error
    assert refused is not None, "nothing is stored"
    assert refused.code in ("bad_config", "no_vision", "missing_tensor")
    assert len(str(refused)) < 500
    assert encode_header([], [])


def test_the_command_writes_it_beside_the_model(tmp_path: Path) -> None:
    folder = save(GEMMA, tmp_path / "gemma")
    cli = Cli(tmp_path)
    plan = cli.json("quantize", folder, "--vision", "--dry-run")
    made = cli.json("quantize", folder, "--vision")
    assert Path(made["path"]).name == "mmproj-gemma-F16.gguf"
    assert (plan["filetype"], plan["tensor_bytes"]) == ("F16", made["tensor_bytes"])
    assert read_header(Path(made["path"])).architecture == "clip"
    refused = cli.run("quantize", folder, "--vision", "--pure")
    assert refused.returncode == 2
