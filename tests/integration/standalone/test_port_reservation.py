"""A port that is ours before its server is there."""

from __future__ import annotations

import socket

import pytest

from services.common.rpc_server import RpcServer
from services.standalone.port_reservation import PortReservation


def server_on(port):
    return RpcServer(host="127.0.0.1", port=port, register=[], service_names=[])


class TestPortReservation:
    async def test_the_server_binds_it_while_it_is_held(self):
        reservation = PortReservation()
        server = server_on(reservation.port)
        await server.start()
        assert server.address == reservation.address
        reservation.release()
        with socket.create_connection(("127.0.0.1", reservation.port), timeout=5):
            pass
        await server.stop(grace_seconds=0)

    def test_nobody_who_asks_for_any_port_gets_it(self):
        reservation = PortReservation()
        others = [socket.create_server(("127.0.0.1", 0)) for _ in range(50)]
        assert reservation.port not in {other.getsockname()[1] for other in others}
        for other in others:
            other.close()
        reservation.release()

    def test_two_are_different(self):
        first, second = PortReservation(), PortReservation()
        assert first.port != second.port
        first.release()
        second.release()

    async def test_a_second_server_is_refused(self):
        reservation = PortReservation()
        server = server_on(reservation.port)
        await server.start()
        with pytest.raises(RuntimeError):
            await server_on(reservation.port).start()
        reservation.release()
        await server.stop(grace_seconds=0)
