"""The clients' side: HTTP, WebSocket sessions, pages."""
