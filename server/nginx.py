"""An nginx configuration with the gateway's guarantees, for those who prefer nginx at the door.

nginx does TLS, asks for the certificate and counts connections; the gateway behind it, on a unix socket, still checks each
request: whose certificate it is, whether it is revoked, how large and how fast it is.
"""

from pathlib import Path

from echofed.server.gateway_fleet import MESSAGES, PREFIX
from echofed.server.gateway_limits import Limits
from echofed.server.settings import ConsortiumSettings

_TEMPLATE = """\
# Written by `echofed server nginx` for {name}: include it in the http block of /etc/nginx/nginx.conf.
# Start the gateway with `echofed server start --unix-socket {socket}`; only nginx's user may open that socket.

limit_conn_zone $binary_remote_addr zone=echofed_addresses:10m;
limit_conn_zone $server_name zone=echofed_all:1m;

server {{
    listen {listen} ssl;
    server_name {server_name};

    ssl_protocols TLSv1.3;
    ssl_certificate {authority}/server.pem;
    ssl_certificate_key {authority}/server.key;  # has it a passphrase, add ssl_password_file
    ssl_client_certificate {authority}/root.pem;
    ssl_verify_client on;
    ssl_verify_depth 2;
    ssl_session_tickets off;
    ssl_session_cache off;

    server_tokens off;
    access_log off;
    merge_slashes off;
    underscores_in_headers off;
    client_header_timeout {head_seconds};
    client_body_timeout {body_seconds};
    send_timeout {body_seconds};
    lingering_timeout 1s;
    lingering_time 2s;
    keepalive_timeout {idle_seconds};
    client_header_buffer_size 8k;
    large_client_header_buffers 2 8k;
    client_max_body_size {document_bytes};
    limit_conn echofed_addresses {connections_per_address};
    limit_conn echofed_all {connections};
    limit_conn_status 503;

    # The gateway hears of a body as it comes, and of a site that goes away.
    proxy_http_version 1.1;
    proxy_request_buffering off;
    proxy_buffering off;
    proxy_ignore_client_abort off;
    proxy_next_upstream off;
    proxy_read_timeout {read_seconds};
    proxy_send_timeout {body_seconds};
    proxy_set_header Connection close;
    proxy_set_header Host $host;
    # Always set, whatever came from outside: the gateway believes it.
    proxy_set_header X-Client-Cert $ssl_client_escaped_cert;

    error_page 495 496 497 = @certificate;
    location @certificate {{
        default_type application/json;
        return 403 '{{"code": "EF-702", "what": "No certificate of this consortium.", "remedy": "Enrol first."}}';
    }}
    error_page 413 = @large;
    location @large {{
        default_type application/json;
        return 413 '{{"code": "EF-805", "what": "Too much was announced.", "remedy": "Send less."}}';
    }}
{locations}
    location / {{
        default_type application/json;
        return 404 '{{"code": "EF-803", "what": "There is nothing here.", "remedy": "Upgrade EchoFed."}}';
    }}
}}
"""
_LOCATION = """
    location {match} {{
        client_max_body_size {size};
        proxy_pass http://unix:{socket}:;
    }}
"""


def nginx_configuration(folder: Path, settings: ConsortiumSettings, unix_socket: Path) -> str:
    """Return a file to include in nginx's http block.

    Args:
        folder: the coordinator's.
        settings: its settings.
        unix_socket: on which the gateway listens.
    """
    limits = settings.limits
    authority = (folder / "authority").absolute()
    host = f"[{settings.bind_host}]" if ":" in settings.bind_host else settings.bind_host
    fleet = [(f"= {PREFIX}{name}", limits.message_bytes) for name in MESSAGES]
    own = [(f"= /v1/{name}", Limits.document_bytes) for name in ("time", "studies", "answers", "renew")]
    blobs = [('~ "^/v1/blobs/[0-9a-f]{64}$"', limits.blob_bytes)]
    locations = (_LOCATION.format(match=match, size=size, socket=unix_socket) for match, size in [*fleet, *own, *blobs])
    return _TEMPLATE.format(
        name=settings.name,
        socket=unix_socket,
        listen=f"{host}:{settings.bind_port}",
        server_name=settings.server_name,
        authority=authority,
        head_seconds=_seconds(limits.header_timeout_seconds),
        body_seconds=_seconds(limits.idle_body_timeout_seconds),
        idle_seconds=_seconds(75.0),
        read_seconds=_seconds(60.0),
        document_bytes=Limits.document_bytes,
        connections=Limits.connections,
        connections_per_address=limits.connections_per_site,
        locations="".join(locations),
    )


def _seconds(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
