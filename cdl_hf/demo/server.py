"""Serving the page: on a port of this machine until Ctrl-C."""

import logging
import os
import socket
import threading
from typing import Any

from .inputs import MAX_BYTES
from .rendering import WEB


def check_port(host: str, port: int) -> None:
    """Tries to listen.

    Raises:
        ValueError: The port is taken or not allowed, or the host is no address of this machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except socket.gaierror as error:
        raise ValueError(f"host {host!r} is not known: {error.strerror}") from error
    except OSError as error:
        raise ValueError(
            f"port {port} of {host} cannot be used: {error.strerror}; choose another with --port"
        ) from error


def launch(page: Any, **options: Any) -> None:
    """Starts to serve the page: with the visitor's own fonts, nothing from other sites, and a limit for uploads."""
    import gradio as gr

    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    style = (WEB / "style.css").read_text(encoding="utf-8")
    page.launch(theme=theme, css=style, footer_links=[], max_file_size=MAX_BYTES, **options)


def serve(page: Any, host: str, port: int, share: bool) -> None:
    """Serves the page until Ctrl-C, prints where, and ends the process.

    Raises:
        ValueError: Another program has taken the port in the meantime.
    """
    from gradio.tunneling import CURRENT_TUNNELS

    try:
        launch(page, server_name=host, server_port=port, share=share, prevent_thread_lock=True, quiet=True)
    except OSError as error:
        raise ValueError(f"port {port} of {host} is taken; choose another with --port") from error
    everywhere = "every address of this machine, such as " if host in ("0.0.0.0", "::") else ""
    print(f"The page is at {everywhere}{page.local_url}")
    if share and page.share_url:
        print(f"and for everyone who knows it at {page.share_url}")
    elif share:
        print("It is not shared: gradio's servers cannot be reached")
    try:
        print("Ctrl-C ends it", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        # Browsers keep their connections open, and whatever they wait for need not be finished.
        page.server.config.timeout_graceful_shutdown = 0
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        page.close(verbose=False)
        for tunnel in CURRENT_TUNNELS:
            tunnel.kill()
        os._exit(0)  # at once: to free all that was imported takes seconds
