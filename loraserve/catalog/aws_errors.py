"""What AWS and its SDK answer, in words of ours: what is wrong, and what to do."""

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    ConnectionError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    InvalidConfigError,
    InvalidRegionError,
    LoginError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)

_LOG_IN = "log in (`aws login`, `aws sso login`) or set AWS_PROFILE, then run it again"
_MEANINGS: tuple[tuple[tuple[type[BotoCoreError], ...], str], ...] = (
    ((NoCredentialsError, PartialCredentialsError), f"there are no AWS credentials here; {_LOG_IN}"),
    (
        (CredentialRetrievalError, SSOError, LoginError, TokenRetrievalError),
        f"the AWS credentials cannot be renewed; {_LOG_IN}",
    ),
    (
        (ProfileNotFound,),
        "AWS_PROFILE names a profile that ~/.aws/config has not; correct it, or unset it",
    ),
    ((ConfigNotFound, ConfigParseError, InvalidConfigError), "~/.aws/config cannot be used; correct it"),
    ((NoRegionError, InvalidRegionError), "no AWS region is set, or a misspelt one; set AWS_REGION"),
    ((ConnectionError, HTTPClientError), "AWS cannot be reached; check the network, AWS_REGION and AWS_ENDPOINT_URL"),
    ((ParamValidationError,), "AWS takes no such name; correct it"),
)
_BAD_CREDENTIALS = {
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnrecognizedClientException",
}
_WRONG_CLOCK = {"RequestExpired", "RequestInTheFuture", "RequestTimeTooSkewed"}
_TRANSIENT_ERRORS = (ConnectionError, HTTPClientError, IncompleteReadError, FlexibleChecksumError)
_TRANSIENT_CODES = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "ConditionalRequestConflict"}
_ACCESS_DENIED = {"403", "AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}


def explain(error: BotoCoreError | ClientError) -> str:
    """One sentence; what AWS is not known to answer keeps its code."""
    if not isinstance(error, ClientError):
        for kinds, meaning in _MEANINGS:
            if isinstance(error, kinds):
                return meaning
        return f"the AWS SDK cannot go on ({type(error).__name__}); check its settings in the environment and ~/.aws/config"
    code = error.response["Error"]["Code"]
    if code in _BAD_CREDENTIALS:
        return f"AWS does not accept the credentials, which are wrong or expired ({code}); {_LOG_IN}"
    if code in _WRONG_CLOCK:
        return f"this machine's clock is minutes away from AWS' ({code}); set it (`timedatectl`, `chronyc tracking`)"
    if code in _ACCESS_DENIED:
        return f"access denied ({code}); check the policies of the role that you use"
    status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    # Where an answer has no body, botocore makes the code of the status.
    return f"AWS answered {' '.join(dict.fromkeys(filter(None, (status, code))))}; try again later"


def is_transient(error: BotoCoreError | ClientError) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, ClientError):
        return http_status(error) >= 500 or error.response["Error"]["Code"] in _TRANSIENT_CODES
    return isinstance(error, _TRANSIENT_ERRORS)


def http_status(error: ClientError) -> int:
    """Of the answer, as HTTP has it."""
    return error.response["ResponseMetadata"]["HTTPStatusCode"]
