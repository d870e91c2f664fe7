from __future__ import annotations

import pytest

from hilora.errors import InvalidInput
from services.router.entrypoints.tenancy import tenant_of


class TestTenant:
    @pytest.mark.parametrize("is_trusted", [True, False])
    @pytest.mark.parametrize("presented", [None, ""])
    def test_who_says_nothing_is_nobody_in_particular(self, presented, is_trusted):
        assert tenant_of(presented, is_trusted=is_trusted) is None

    def test_where_clients_are_trusted_their_word_counts(self):
        assert tenant_of("acme", is_trusted=True) == "acme"

    def test_where_they_are_not_it_is_refused_rather_than_passed_over(self):
        with pytest.raises(InvalidInput) as raised:
            tenant_of("acme", is_trusted=False)
        assert raised.value.code == "tenant_not_accepted"

    def test_what_is_no_name_is_refused(self):
        with pytest.raises(InvalidInput):
            tenant_of("a b", is_trusted=True)
