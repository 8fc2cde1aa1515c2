"""The nginx configuration that is generated; tests/server/test_gateway_hostile.py attacks the nginx that runs with it."""

import re
from pathlib import Path

from echofed.server.gateway_fleet import MESSAGES
from echofed.server.nginx import nginx_configuration
from echofed.server.settings import ConsortiumSettings, GatewayLimits


def configuration(tmp_path: Path) -> str:
    settings = ConsortiumSettings(
        name="Test", address="fed.example.org:8443", bind_port=9443, limits=GatewayLimits(blob_bytes=12_345_678)
    )
    return nginx_configuration(tmp_path / "C", settings, Path("/run/echofed/gateway.sock"))


def test_it_lets_in_what_the_gateway_lets_in_and_nothing_else(tmp_path: Path) -> None:
    matches = set(re.findall(r"location (=|~|/|@\w+) ?(\S*) \{", configuration(tmp_path)))
    exact = {place for kind, place in matches if kind == "="}
    own = {"/v1/time", "/v1/studies", "/v1/answers", "/v1/renew"}
    assert exact == own | {f"/v1/fleet/{name}" for name in MESSAGES}
    assert {place for kind, place in matches if kind == "~"} == {'"^/v1/blobs/[0-9a-f]{64}$"'}
    assert configuration(tmp_path).count("proxy_pass") == len(exact) + 1


def test_it_has_the_settings(tmp_path: Path) -> None:
    text = configuration(tmp_path)
    assert "listen 0.0.0.0:9443 ssl;" in text
    assert "server_name fed.example.org;" in text
    assert "client_max_body_size 12345678;" in text
    assert "proxy_pass http://unix:/run/echofed/gateway.sock:;" in text
    assert f"ssl_certificate {tmp_path}/C/authority/server.pem;" in text
    assert "root.key" not in text
    assert "issuing.key" not in text


def test_the_certificate_is_asked_for_and_its_header_always_set(tmp_path: Path) -> None:
    text = configuration(tmp_path)
    assert "ssl_protocols TLSv1.3;" in text
    assert "ssl_verify_client on;" in text
    assert text.count("proxy_set_header X-Client-Cert $ssl_client_escaped_cert;") == 1
    # A proxy_set_header inside a location would undo those of the server block.
    assert all("proxy_set_header" not in block for block in re.findall(r"location [^{]+\{[^}]*\}", text))
