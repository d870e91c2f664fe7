from __future__ import annotations

import pytest

from hilora.access import AdapterAccess, Requester, TrustTier, check_tenant
from hilora.errors import InvalidInput


class TestAdmission:
    @pytest.mark.parametrize("tenant", [None, "a", "b"])
    def test_everybody_may_use_what_names_no_tenant(self, tenant):
        assert AdapterAccess().admits(Requester(tenant=tenant))

    def test_only_the_tenants_that_are_named_may_use_the_rest(self):
        access = AdapterAccess(visible_to=("a", "c"))
        assert [access.admits(Requester(tenant=tenant)) for tenant in ("a", "b", "c", None)] == [
            True,
            False,
            True,
            False,
        ]

    def test_a_lower_tier_than_asked_for_is_passed_over(self):
        tiers = list(TrustTier)
        for asked in tiers:
            admitted = [
                tier
                for tier in tiers
                if AdapterAccess(trust_tier=tier).admits(Requester(tenant="a", min_trust_tier=asked))
            ]
            assert admitted == tiers[tiers.index(asked) :]


class TestTenantNames:
    @pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "x" * 129, "a\n"])
    def test_what_is_no_name_is_refused(self, name):
        with pytest.raises(InvalidInput) as raised:
            check_tenant(name)
        assert raised.value.code == "invalid_tenant"

    def test_a_name_comes_back_unchanged(self):
        assert check_tenant("team-7.eu") == "team-7.eu"
