"""Write pocket as a Hugging Face folder: config, tokenizer, template and two bf16 shards.

python profiles/pocket_recipe/export.py --work DIR [--to profiles/edgekit_profiles/pocket]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from model import Pocket, Shape
from safetensors.torch import save_file
from tokenizer import CONTROL

HERE = Path(__file__).parent


def load(work: Path) -> Pocket:
    model = Pocket(Shape())
    model.load_state_dict(
        torch.load(work / "state.pt", map_location="cpu", weights_only=True)["model"]
    )
    return model.eval()


def write_weights(model: Pocket, to: Path) -> int:
    """Write two shards of about equal size and their index; return the bytes of all tensors."""
    state = model.hf_state()
    total = sum(t.numel() * t.element_size() for t in state.values())
    shards: list[dict[str, torch.Tensor]] = [{}, {}]
    done = 0
    for name, tensor in state.items():
        shards[0 if done < total // 2 else 1][name] = tensor
        done += tensor.numel() * tensor.element_size()
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, to / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    write_json(
        to / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )
    return total


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text_files(work: Path, to: Path) -> None:
    shutil.copyfile(work / "tokenizer.json", to / "tokenizer.json")
    template = (HERE / "template.jinja").read_text()
    (to / "chat_template.jinja").write_text(template)
    added = {
        str(i): {
            "content": t,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for i, t in enumerate(CONTROL)
    }
    write_json(
        to / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": added,
            "bos_token": "<s>",
            "chat_template": template,
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "model_max_length": Shape().n_ctx_train,
            "pad_token": "<pad>",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
        },
    )
    write_json(to / "config.json", Shape().hf_config())
    write_json(
        to / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11},
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path, default=HERE.parent / "edgekit_profiles" / "pocket")
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    write_text_files(args.work, args.to)
    print(f"{write_weights(load(args.work), args.to):,} bytes of tensors in {args.to}")


if __name__ == "__main__":
    main()
