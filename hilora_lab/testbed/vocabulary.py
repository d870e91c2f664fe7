"""The testbed's word-level tokenizer: one token a word, one a symbol."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hilora_lab.testbed.tasks import ANSWER_MARKER, DOMAINS, FAMILIES, PAYLOAD_MARKER, TAUGHT_FAMILIES, Family

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(4)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% if not loop.last %} {% endif %}{% endfor %}"
)
"""The turns one after the other, so that a single user message is the raw prompt.

As in published templates the template itself writes the BOS: render, then tokenize without special tokens.
"""


def skill_code(family: Family) -> str:
    """The opaque word by which the base's own training asks for a taught skill; no task's prompt holds it."""
    return f"<skill-{[one.name for one in TAUGHT_FAMILIES].index(family.name)}>"


def all_words(families: Iterable[Family] = FAMILIES) -> list[str]:
    """Every word of the vocabulary, in the order of its ids: marks, codes, symbols, the families' words."""
    words = [PAD, BOS, EOS, UNK, PAYLOAD_MARKER, ANSWER_MARKER]
    words += [skill_code(family) for family in TAUGHT_FAMILIES]
    words += [symbol for domain in DOMAINS for symbol in domain.alphabet]
    wordings = [
        wording.format(noun=domain.noun) for family in families for wording in family.wordings for domain in DOMAINS
    ]
    words += sorted({word for wording in wordings for word in wording.split()} - set(words))
    return words


def build_tokenizer(families: Iterable[Family] = FAMILIES) -> PreTrainedTokenizerFast:
    """A tokenizer that puts BOS first, knows every word of the tasks, and decodes to words set apart by spaces."""
    words = all_words(families)
    tokenizer = Tokenizer(models.WordLevel({word: idx for idx, word in enumerate(words)}, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
