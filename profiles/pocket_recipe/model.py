"""pocket's network: Mistral's decoder in plain torch, small enough to read at one sitting."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Mistral Small's kind: grouped-query 4:1, SwiGLU, untied output, rows a multiple of 256."""

    vocab: int = 4096
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 1
    head_dim: int = 64
    ffn: int = 1024
    theta: float = 1e6
    eps: float = 1e-5
    n_ctx_train: int = 16384

    def hf_config(self) -> dict[str, object]:
        return {
            "architectures": ["MistralForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.ffn,
            "max_position_embeddings": self.n_ctx_train,
            "model_type": "mistral",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": self.eps,
            "rope_theta": self.theta,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.48.0",
            "use_cache": True,
            "vocab_size": self.vocab,
        }


def rope_tables(shape: Shape, n: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each [n, head_dim], in Hugging Face's half-split layout."""
    exponent = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
    angle = torch.outer(torch.arange(n).float(), shape.theta**-exponent)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Block(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.input_layernorm = nn.RMSNorm(s.hidden, eps=s.eps)
        self.post_attention_layernorm = nn.RMSNorm(s.hidden, eps=s.eps)
        self.q_proj = nn.Linear(s.hidden, s.heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head_dim, s.hidden, bias=False)
        self.gate_proj = nn.Linear(s.hidden, s.ffn, bias=False)
        self.up_proj = nn.Linear(s.hidden, s.ffn, bias=False)
        self.down_proj = nn.Linear(s.ffn, s.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        s = self.s
        h = self.input_layernorm(x)
        q = self.q_proj(h).view(b, t, s.heads, s.head_dim).transpose(1, 2)
        k = self.k_proj(h).view(b, t, s.kv_heads, s.head_dim).transpose(1, 2)
        v = self.v_proj(h).view(b, t, s.kv_heads, s.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = s.heads // s.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(y.transpose(1, 2).reshape(b, t, -1))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class Pocket(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.eps)
        self.lm_head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        deep = (2 * shape.layers) ** -0.5
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = deep if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(p, std=scale * p.shape[1] ** -0.5)
        nn.init.normal_(self.embed_tokens.weight, std=0.3)
        nn.init.zeros_(self.lm_head.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [batch, time] -> logits [batch, time, vocab]."""
        cos, sin = rope_tables(self.shape, ids.shape[1])
        x = self.embed_tokens(ids)
        cos, sin = cos.to(ids.device), sin.to(ids.device)
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            x, cos, sin = x.bfloat16(), cos.bfloat16(), sin.bfloat16()
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.lm_head(self.norm(x))

    def hf_state(self) -> dict[str, Tensor]:
        """Return the weights under Hugging Face's names, bf16."""
        names = {}
        for name, p in self.state_dict().items():
            part = name.split(".")
            if part[0] == "blocks":
                room = "self_attn." if part[2][0] in "qkvo" and part[2].endswith("proj") else ""
                if part[2] in ("gate_proj", "up_proj", "down_proj"):
                    room = "mlp."
                name = f"model.layers.{part[1]}.{room}{'.'.join(part[2:])}"
            elif part[0] != "lm_head":
                name = f"model.{name}"
            names[name] = p.detach().to(torch.bfloat16).contiguous()
        return names


def describe(shape: Shape) -> dict[str, object]:
    return asdict(shape)
