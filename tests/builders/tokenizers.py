"""Tokenizers of the kinds that models use, without files."""

from __future__ import annotations

from functools import cache


@cache
def byte_level_tokenizer():
    """As GPT-2, Llama 3 and Qwen do it; some merges end in the middle of a character, as learned ones do."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    symbols = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {symbol: idx for idx, symbol in enumerate(symbols)}
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("é漢🙂 a")[0][0]
    merges = [(pieces[1], pieces[2]), (pieces[3], pieces[4]), (pieces[6], pieces[7]), (pieces[-2], pieces[-1])]
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@cache
def metaspace_tokenizer():
    """As SentencePiece models do it: a word carries its leading space, unknown characters fall back to bytes."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    symbols = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", ".", ",", "'"]
    vocab = {symbol: idx for idx, symbol in enumerate(symbols)}
    model = BPE(vocab=vocab, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


@cache
def word_tokenizer():
    """Whole words, set apart by spaces."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "a", "b", ".", ",", "é", "漢字", "{", "}", ":", '"a"', "1"]
    tokenizer = Tokenizer(WordLevel(vocab={word: idx for idx, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


TOKENIZERS = {"byte-level": byte_level_tokenizer, "metaspace": metaspace_tokenizer, "words": word_tokenizer}
"""Builders by kind; each has `</s>` as token 1."""
