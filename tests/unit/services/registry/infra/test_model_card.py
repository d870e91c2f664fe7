"""Model cards of strangers: what is read out of them, and what does no harm."""

from __future__ import annotations

import pytest

from services.registry.artifact import ProfileSubject
from services.registry.infra.card_texts import CardTexts
from services.registry.infra.model_card import MAX_FRONT_MATTER_BYTES, ModelCard, read_model_card

CARD = """---
library_name: peft
license: mit
pipeline_tag: text-classification
tags:
- peft
- base_model:adapter:meta-llama/Llama-3.1-8B
- legal-documents
datasets:
- someone/contracts
- someone/clauses
widget:
- text: "Is this clause about liability?"
- text: "Which law governs this contract?"
---
# Contract reader

<!-- Provide a quick summary of what the model is/does. -->

This adapter classifies the clauses of [commercial contracts](https://example.org/x). It knows 41 kinds.
<b>It was trained on English text only.</b>

| metric | value |
|---|---|
| loss | 0.1 |

```python
load_the_model_and_run_this_code()
```

### Recommendations

Users (both direct and downstream) should be made aware of the risks, biases and limitations of the model.

- **Developed by:** [More Information Needed]
"""


def subject(card, name="contract-reader"):
    return ProfileSubject(
        adapter_name=name,
        adapter_id=f"{name}@0000",
        lora_rank=8,
        card=card,
        is_served=True,
        catalog_generation=1,
    )


class TestReading:
    def test_front_matter(self):
        card = read_model_card(CARD)
        assert card.datasets == ("someone/contracts", "someone/clauses")
        assert card.examples == ("Is this clause about liability?", "Which law governs this contract?")
        assert card.tags[-2:] == ("legal-documents", "text-classification")

    def test_prose_without_html_code_tables_links_and_template(self):
        assert read_model_card(CARD).sentences == (
            "This adapter classifies the clauses of commercial contracts.",
            "It knows 41 kinds.",
            "It was trained on English text only.",
        )

    def test_a_card_without_front_matter(self):
        assert read_model_card("It translates English to French.").sentences == ("It translates English to French.",)

    def test_a_single_data_set_may_be_no_list(self):
        assert read_model_card("---\ndatasets: someone/one\n---\n").datasets == ("someone/one",)

    def test_values_of_other_types_are_passed_over(self):
        card = "---\ndatasets: {a: b}\ntags: [1, [x], {y: z}, good]\nwidget: nothing\n---\n"
        assert read_model_card(card) == ModelCard(tags=("1", "good"))


class TestHostileCards:
    @pytest.mark.parametrize(
        "front",
        [
            "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\ndatasets: *c",
            "&a datasets: [*a]",
            "datasets: !!python/object/apply:os.system ['true']",
            "datasets: !!python/name:os.system",
            "datasets: " + "[" * 20_000,
            "datasets: " + "{a: " * 15_000,
            "datasets: [unclosed",
            "\t: bad",
            "datasets: \x00",
            "x: 1\n" * 3 + "%YAML 9.9\n--- \n",
            "a: " + "9" * 60_000,
            "? - - - - -\n" * 100,
        ],
    )
    def test_yaml_that_means_harm_is_passed_over(self, front):
        card = read_model_card(f"---\n{front}\n---\nThis adapter sorts all words.\n")
        assert not any("system" in name for name in card.datasets)
        assert len(card.datasets) <= 1

    def test_front_matter_beyond_the_cap_is_not_read(self):
        filler = "x" * MAX_FRONT_MATTER_BYTES
        card = read_model_card(f"---\ndatasets: someone/one\nfiller: {filler}\n---\nThis adapter sorts all words.\n")
        assert card.datasets == ()
        assert card.sentences == ("This adapter sorts all words.",)

    @pytest.mark.parametrize(
        "body",
        [
            "<script>alert('do not read this at all')</script>",
            "<style>p { color: red; margin: 0 auto; }</style>",
            "<!-- a comment that never ends, with many words",
            "![an image with a long caption](data:image/png;base64,AAAA)",
            "```\nfenced code that never ends with words",
            "<img src=x onerror='alert(1) or other words here'>",
        ],
    )
    def test_no_html_code_or_image_reaches_a_text(self, body):
        assert read_model_card(body).sentences == ()

    @pytest.mark.parametrize(
        "body", ["<" * 200_000, "[" * 200_000, "![" * 100_000, "<script" * 50_000, "- " * 200_000, "`" * 200_000]
    )
    def test_patterns_do_not_blow_up(self, body):
        assert len(read_model_card(body).sentences) <= 1


class TestCardTexts:
    async def test_examples_first_then_name_and_tags_then_prose(self):
        texts = await CardTexts().texts(subject(CARD))
        assert texts == (
            "Is this clause about liability?",
            "Which law governs this contract?",
            "contract reader, legal documents, text classification",
            "This adapter classifies the clauses of commercial contracts.",
            "It knows 41 kinds.",
            "It was trained on English text only.",
        )

    @pytest.mark.parametrize(
        "card",
        [
            None,
            "",
            "---\ntags: [peft, lora]\nlicense: mit\n---\n",
            "---\nlibrary_name: peft\n---\n# Model Card for Model ID\n\n[More Information Needed]\n",
        ],
    )
    async def test_a_card_that_says_nothing_has_no_texts(self, card):
        assert await CardTexts().texts(subject(card)) == ()
