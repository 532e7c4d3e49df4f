"""The programs the gateway is compared with, and all peers together.

Each is set up as its own documentation would for streams: no access log, connections kept, one process or thread.
How they get here is `installation`'s.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from scripts.rig.gateway import gateways
from scripts.rig.model_server import MODEL
from scripts.rig.peer import Peer, Place
from scripts.rig.places import SOURCES, environment

REFERENCE = "nginx"
DIRECT = "direct"
LITELLM_KEY = "sk-rig-only"


def _nginx(place: Place) -> Sequence[str]:
    user = "user root; " if os.geteuid() == 0 else ""  # else its worker could not reach the folder
    file = place.file(
        "nginx.conf",
        f"""{user}daemon off; worker_processes 1; worker_rlimit_nofile 20000;
pid nginx.pid; error_log error.log warn;
events {{ worker_connections 16000; multi_accept on; }}
http {{
  access_log off; tcp_nodelay on; keepalive_timeout 75; keepalive_requests 1000000;
  client_max_body_size 64m; client_body_buffer_size 2m;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  upstream model_server {{ server 127.0.0.1:{place.upstream_port}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{place.port} backlog=4096;
    location / {{
      proxy_pass http://model_server; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
""",
    )
    return ["nginx", "-p", str(place.folder), "-c", file, "-e", "error.log"]


def _haproxy(place: Place) -> Sequence[str]:
    file = place.file(
        "haproxy.cfg",
        f"""global
  nbthread 1
  maxconn 9000
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  http-reuse always
  option http-no-delay
frontend clients
  bind 127.0.0.1:{place.port} backlog 4096
  default_backend model_server
backend model_server
  server one 127.0.0.1:{place.upstream_port} pool-max-conn 2000
""",
    )
    return ["haproxy", "-db", "-f", file]


def _litellm(place: Place) -> Sequence[str]:
    file = place.file(
        "litellm.yaml",
        f"""model_list:
  - model_name: {MODEL}
    litellm_params: {{model: openai/{MODEL}, api_base: "{place.upstream}/v1", api_key: sk-none}}
litellm_settings: {{telemetry: false, num_retries: 0, request_timeout: 600}}
""",
    )
    binary = str(environment("litellm") / "bin" / "litellm")
    return [binary, "--config", file, "--host", "127.0.0.1", "--port", str(place.port), "--num_workers", "1"]


def _router(name: str, *before: str, more: Sequence[str] = ()) -> Peer:
    """One of the Rust routers, which take the same options."""
    binary = str(environment(name) / "bin" / name)

    def command(place: Place) -> Sequence[str]:
        listening = ("--host", "127.0.0.1", "--port", str(place.port))
        metrics = ("--prometheus-host", "127.0.0.1", "--prometheus-port", str(place.spare_port))
        workers = ("--worker-urls", place.upstream, "--policy", "round_robin")
        return [binary, *before, *listening, *workers, *metrics, "--log-level", "error", *more]

    return Peer(name, command, binary, own_environment=environment(name))


def _naive(place: Place) -> Sequence[str]:
    return [sys.executable, str(SOURCES / "naive.py"), str(place.port), place.upstream]


OTHERS = (
    Peer(DIRECT),
    Peer("nginx", _nginx, "nginx", debian_packages=("nginx", "nginx-common", "nginx-light", "nginx-core")),
    Peer("haproxy", _haproxy, "haproxy", debian_packages=("haproxy",)),
    _router("vllm-router", more=("--max-concurrent-requests", "10000")),
    _router("sglang-router", "launch", more=("--max-concurrent-requests", "10000")),
    _router("smg", "launch"),
    Peer("naive", _naive, imports="aiohttp.web, uvloop", distributions=("aiohttp", "uvloop")),
    Peer(
        "litellm",
        _litellm,
        str(environment("litellm") / "bin" / "litellm"),
        headers=(f"Authorization: Bearer {LITELLM_KEY}",),
        variables={
            "LITELLM_MASTER_KEY": LITELLM_KEY,
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_MODE": "PRODUCTION",
            "NO_DOCS": "True",
        },
        ready_within_s=120,
        usual_start_s=30,
        own_environment=environment("litellm"),
        imports="litellm.proxy.proxy_server",
    ),
)


def all_peers(gateway_arguments: str = "") -> dict[str, Peer]:
    """Every peer by name, in the order of the table."""
    return {peer.name: peer for peer in (*OTHERS, *gateways(gateway_arguments))}
