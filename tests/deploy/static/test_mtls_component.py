"""With the component mtls every service shows a certificate by which the others know it."""

from __future__ import annotations

import json

import pytest

from tests.builders.deploy_files import environment_of, named, pod_of, rendered

# Who calls a service, by docs/architecture.md; the router's door is for clients of any of our certificates.
CALLERS = {"registry": {"router", "worker"}, "worker": {"router", "registry"}}
KINDS = {"router": "Deployment", "worker": "Deployment", "registry": "StatefulSet"}


@pytest.mark.parametrize("service", KINDS)
def test_the_certificate_is_mounted_where_the_settings_look_for_it(service):
    documents = rendered("production")
    certificate = named(documents, "Certificate", f"hilora-{service}")["spec"]
    pod = pod_of(named(documents, KINDS[service], f"hilora-{service}"))
    volume = next(v for v in pod["volumes"] if v["name"] == "tls")
    prefix = f"HILORA_{service.upper()}_TLS_"

    assert volume["secret"]["secretName"] == certificate["secretName"]
    for container in pod["containers"]:
        variables = environment_of(container, documents)
        folder = next(m["mountPath"] for m in container["volumeMounts"] if m["name"] == "tls")
        assert variables[f"{prefix}CERT_FILE"] == f"{folder}/tls.crt"
        assert variables[f"{prefix}KEY_FILE"] == f"{folder}/tls.key"
        assert variables[f"{prefix}CA_FILE"] == f"{folder}/ca.crt"


@pytest.mark.parametrize("service", KINDS)
def test_names_are_those_that_the_others_ask_for(service):
    documents = rendered("production")
    names = named(documents, "Certificate", f"hilora-{service}")["spec"]["dnsNames"]
    variables = named(documents, "ConfigMap", f"hilora-{service}")["data"]

    assert variables[f"HILORA_{service.upper()}_TLS_SERVER_NAME"] in names
    if service in CALLERS:
        allowed = json.loads(variables[f"HILORA_{service.upper()}_TLS_CLIENT_NAMES"])
        assert set(allowed) == {f"{caller}.hilora.internal" for caller in CALLERS[service]}
        for caller in CALLERS[service]:
            shown = named(documents, "Certificate", f"hilora-{caller}")["spec"]["dnsNames"]
            assert set(shown) & set(allowed)


@pytest.mark.parametrize("service", KINDS)
def test_certificates_serve_both_ends(service):
    usages = named(rendered("production"), "Certificate", f"hilora-{service}")["spec"]["usages"]

    assert {"server auth", "client auth"} <= set(usages)
