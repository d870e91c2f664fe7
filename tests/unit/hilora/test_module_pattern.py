from __future__ import annotations

import time

import pytest

from hilora import module_pattern
from hilora.errors import InvalidAdapter, UnsupportedAdapterFeature
from hilora.module_pattern import ModulePatterns, value_for

PATH = "model.layers.10.self_attn.q_proj"


def value_of(values: dict[str, int], path: str = PATH) -> int:
    return value_for(path, patterns=ModulePatterns(values, place="rank_pattern"), values=values, default=0)


class TestMatching:
    @pytest.mark.parametrize(
        ("pattern", "applies"),
        [
            ("q_proj", True),
            ("self_attn.q_proj", True),
            (PATH, True),
            (f"^{PATH}", True),
            (r"layers\.1\d\.self_attn\..*", True),
            ("(q|v)_proj", True),
            ("proj", False),
            ("layers.1.self_attn.q_proj", False),
            ("k_proj", False),
            ("q_proj.", False),
        ],
    )
    def test_a_pattern_covers_the_whole_path_or_what_follows_a_dot(self, pattern, applies):
        assert value_of({pattern: 7}) == (7 if applies else 0)

    def test_the_first_pattern_of_the_file_decides(self):
        assert value_of({"k_proj": 1, "(q|k)_proj": 2, "q_proj": 3}) == 2


class TestSafety:
    @pytest.mark.parametrize(
        "pattern",
        ["(a+)+", "(a|a)*b", ".*.*.*", "(?=a)q", r"(q)\1", "x" * 600, "(a|a)(a|a)(a|a)(a|a)", "(a){9}", "a?a?a?a?b"],
    )
    def test_involved_expressions_are_refused(self, pattern):
        with pytest.raises(UnsupportedAdapterFeature) as caught:
            ModulePatterns([pattern], place="alpha_pattern")
        assert (caught.value.code, caught.value.place) == ("unsupported_module_pattern", "alpha_pattern")

    @pytest.mark.parametrize("pattern", ["(q", "[q", "*q"])
    def test_what_is_no_expression_is_malformed(self, pattern):
        with pytest.raises(InvalidAdapter) as caught:
            ModulePatterns([pattern], place="rank_pattern")
        assert caught.value.code == "invalid_adapter_config"

    def test_patterns_that_take_too_long_together_are_refused(self, monkeypatch):
        monkeypatch.setattr(module_pattern, "_MAX_SECONDS", 1e-9)
        patterns = ModulePatterns(["k_proj", "q_proj"], place="rank_pattern")
        with pytest.raises(UnsupportedAdapterFeature) as caught:
            patterns.matching(PATH)
        assert (caught.value.code, caught.value.place) == ("unsupported_module_pattern", "rank_pattern")
        assert patterns.matching(PATH) is None

    def test_the_worst_accepted_expression_takes_no_time(self):
        patterns = ModulePatterns([".*a.*b"], place="rank_pattern")
        started = time.process_time()
        assert patterns.matching("a" * 256) is None
        assert time.process_time() - started < 1.0
