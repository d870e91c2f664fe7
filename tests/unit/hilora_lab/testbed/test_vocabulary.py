from __future__ import annotations

import random

import pytest

from hilora_lab.testbed.batches import collate, tokenize_example
from hilora_lab.testbed.tasks import FAMILIES, draw_example, tasks_of
from hilora_lab.testbed.vocabulary import BOS_ID, EOS_ID, PAD_ID, UNK_ID, all_words, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def examples():
    generator = random.Random(0)
    return [draw_example(task, generator) for task in tasks_of(FAMILIES) for _ in range(5)]


class TestTokenizer:
    def test_every_prompt_and_answer_survives_the_round_trip(self, tokenizer, examples):
        for example in examples:
            for text in (example.prompt, example.answer):
                ids = tokenizer(text)["input_ids"]

                assert UNK_ID not in ids
                assert tokenizer.decode(ids, skip_special_tokens=True) == text

    def test_bos_comes_first_and_once(self, tokenizer, examples):
        ids = tokenizer(examples[0].prompt)["input_ids"]

        assert ids[0] == BOS_ID
        assert ids.count(BOS_ID) == 1

    def test_a_single_user_message_is_the_raw_prompt(self, tokenizer, examples):
        for example in examples[::7]:
            messages = [{"role": "user", "content": example.prompt}]
            rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            direct = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

            assert tokenizer(rendered, add_special_tokens=False)["input_ids"] == tokenizer(example.prompt)["input_ids"]
            assert direct == tokenizer(example.prompt)["input_ids"]

    def test_turns_are_concatenated(self, tokenizer):
        messages = [{"role": "system", "content": "copy the"}, {"role": "user", "content": "letters : a ="}]

        rendered = tokenizer.apply_chat_template(messages, tokenize=False)

        assert rendered == "<s>copy the letters : a ="

    def test_it_is_the_same_after_saving(self, tokenizer, examples, tmp_path):
        from transformers import AutoTokenizer

        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)

        assert loaded(examples[3].prompt)["input_ids"] == tokenizer(examples[3].prompt)["input_ids"]
        assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (PAD_ID, BOS_ID, EOS_ID)

    def test_words_are_unique(self):
        words = all_words()

        assert len(set(words)) == len(words)

    def test_a_word_nobody_taught_is_unknown(self, tokenizer):
        assert tokenizer("xylophone")["input_ids"] == [BOS_ID, UNK_ID]


class TestBatches:
    def test_an_example_ends_with_eos_and_only_the_answer_counts(self, tokenizer, examples):
        tokenized = [tokenize_example(tokenizer, example) for example in examples[:6]]

        batch = collate(tokenized)

        for row, example in enumerate(tokenized):
            answer_ids = batch.input_ids_BT[row][batch.answer_mask_BT[row]].tolist()
            assert answer_ids == list(example.answer_ids)
            assert answer_ids[-1] == EOS_ID
            length = len(example.prompt_ids) + len(example.answer_ids)
            assert batch.input_ids_BT[row, length:].eq(PAD_ID).all()
