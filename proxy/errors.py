"""The errors the gateway itself answers with; the hierarchy below is their documentation.

    GatewayError
    ├── ClientError                     the request cannot be served as it was sent
    │   ├── InvalidRequest      400     invalid_request, invalid_json, missing_model
    │   ├── Unauthorized        401     invalid_api_key
    │   ├── Forbidden           403     model_not_allowed, origin_not_allowed, host_not_allowed
    │   ├── ModelNotFound       404     model_not_found
    │   ├── NotFound            404     not_found
    │   ├── MethodNotAllowed    405     method_not_allowed
    │   ├── RequestTimeout      408     request_timeout
    │   ├── RequestInProgress   409     request_in_progress
    │   ├── BodyTooLarge        413     body_too_large
    │   ├── UnsupportedEncoding 415     unsupported_encoding
    │   └── UpgradeRequired     426     upgrade_required
    ├── UpstreamError                   the model server did not answer, or not as its protocol asks
    │   ├── UpstreamUnreachable 502     upstream_unreachable
    │   │   └── StaleConnection         a pooled connection was closed before it gave a byte: try a fresh one
    │   ├── UpstreamInvalid     502     upstream_invalid
    │   ├── UpstreamTruncated   502     upstream_truncated
    │   ├── FirstTokenTimeout   504     first_token_timeout
    │   ├── UpstreamIdle        504     upstream_idle
    │   └── UpstreamTimeout     504     upstream_timeout
    ├── TooManyRequests         429     rate_limit_exceeded, queue_full, too_many_streams; with retry_after_s
    ├── Unavailable             503     no_replica_available, queue_timeout, draining, overloaded, tools_unavailable
    │   └── NoReplica                   none of a route's replicas may be asked now: no_replica_available
    └── InternalError           500     internal_error

How an error is worded in a protocol (OpenAI's shape, Anthropic's, ...) belongs to `protocols`.
No message here carries a key, an upstream's address or bytes of a malformed request.
"""

from __future__ import annotations

from typing import ClassVar, Self


class GatewayError(Exception):
    """An error with everything a client needs: status, code, type, message and, where it makes sense, when to retry."""

    status: ClassVar[int] = 500
    default_code: ClassVar[str] = "internal_error"
    default_type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.type = self.default_type
        self.param = param
        self.retry_after_s = retry_after_s

    def about(self, subject: str) -> Self:
        """The same error, saying first what it is about: `route "chat": replica 0: ...`."""
        return type(self)(
            f"{subject}: {self.message}", code=self.code, param=self.param, retry_after_s=self.retry_after_s
        )


class ClientError(GatewayError):
    status = 400
    default_code = "invalid_request"
    default_type = "invalid_request_error"


class InvalidRequest(ClientError):
    pass


class Unauthorized(ClientError):
    status = 401
    default_code = "invalid_api_key"
    default_type = "authentication_error"


class Forbidden(ClientError):
    status = 403
    default_code = "model_not_allowed"
    default_type = "permission_error"


class ModelNotFound(ClientError):
    status = 404
    default_code = "model_not_found"


class NotFound(ClientError):
    status = 404
    default_code = "not_found"


class MethodNotAllowed(ClientError):
    status = 405
    default_code = "method_not_allowed"


class RequestTimeout(ClientError):
    status = 408
    default_code = "request_timeout"


class RequestInProgress(ClientError):
    status = 409
    default_code = "request_in_progress"


class BodyTooLarge(ClientError):
    status = 413
    default_code = "body_too_large"


class UnsupportedEncoding(ClientError):
    status = 415
    default_code = "unsupported_encoding"


class UpgradeRequired(ClientError):
    status = 426
    default_code = "upgrade_required"


class UpstreamError(GatewayError):
    status = 502
    default_code = "upstream_invalid"
    default_type = "upstream_error"


class UpstreamUnreachable(UpstreamError):
    default_code = "upstream_unreachable"


class StaleConnection(UpstreamUnreachable):
    pass


class UpstreamInvalid(UpstreamError):
    default_code = "upstream_invalid"


class UpstreamTruncated(UpstreamError):
    default_code = "upstream_truncated"


class FirstTokenTimeout(UpstreamError):
    status = 504
    default_code = "first_token_timeout"


class UpstreamIdle(UpstreamError):
    status = 504
    default_code = "upstream_idle"


class UpstreamTimeout(UpstreamError):
    status = 504
    default_code = "upstream_timeout"


class TooManyRequests(GatewayError):
    status = 429
    default_code = "rate_limit_exceeded"
    default_type = "rate_limit_error"


class Unavailable(GatewayError):
    status = 503
    default_code = "no_replica_available"


class NoReplica(Unavailable):
    pass


class InternalError(GatewayError):
    status = 500
    default_code = "internal_error"
