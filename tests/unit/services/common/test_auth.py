from __future__ import annotations

import pytest
from fastapi import HTTPException
from pydantic import SecretStr

from services.common.auth import refuse_open_door, require_bearer_key


class TestBearerKey:
    async def test_the_right_key_passes(self):
        await require_bearer_key(SecretStr("s3cret"))("Bearer s3cret")

    @pytest.mark.parametrize("header", [None, "", "s3cret", "Basic s3cret", "Bearer", "Bearer wrong", "Bearer s3cre"])
    async def test_anything_else_is_401(self, header):
        with pytest.raises(HTTPException) as raised:
            await require_bearer_key(SecretStr("s3cret"))(header)

        assert raised.value.status_code == 401
        assert raised.value.headers == {"WWW-Authenticate": "Bearer"}

    async def test_no_key_switches_the_check_off(self):
        await require_bearer_key(None)(None)


class TestOpenDoor:
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
    def test_loopback_needs_no_key(self, host):
        refuse_open_door(host=host, key=None, setting="X")

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
    def test_the_network_needs_one(self, host):
        with pytest.raises(ValueError, match="X"):
            refuse_open_door(host=host, key=None, setting="X")
        refuse_open_door(host=host, key=SecretStr("k"), setting="X")
