"""Retry an object store's passing failures, and explain the lasting ones.

obstore reports nearly all failures as one exception type, so this module reads its messages.
"""

import logging
import re
import time
from collections.abc import Callable
from random import SystemRandom
from typing import TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError

from unic_cache.errors import CacheError

PATIENCE = 180.0  # seconds from the first failure to the last attempt
LOGIN_PATIENCE = 5.0  # seconds, for a login service that has never answered
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between attempts, doubling
PASSING = {"408", "425", "429", "500", "502", "503", "504"}  # HTTP statuses worth a retry
QUIET = 2.0  # seconds before a warning is logged
LOGIN = re.compile(r"/latest/(api/token|meta-data)|/computeMetadata/|token request")  # used if no key is set
ABROAD = "redirect without LOCATION"  # Amazon's answer from the wrong region
UNTRUSTED = re.compile("InvalidCertificate|CERTIFICATE_VERIFY_FAILED")  # obstore's and urllib's words
HOPELESS = re.compile(f"{ABROAD}|{UNTRUSTED.pattern}|builder error|Header missing")  # the last two: no HTTP server

ACCESS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, if you have one), or "
    "AWS_SKIP_SIGNATURE=true for a public bucket, and check what the bucket allows them",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file and check what the bucket allows it",
}

log = logging.getLogger(__name__)
T = TypeVar("T")


def outlive(url: str, call: Callable[[], T], answered: bool) -> T:
    """The result of `call`, retried as long as its failure may pass.

    `answered`: the server has answered before, so `url` and the credentials are right.
    FileNotFoundError if the object does not exist, CacheError if the failure lasts.
    """
    pause, first_failure, warned = FIRST_PAUSE, 0.0, False
    while True:
        try:
            return call()
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise CacheError(f"{url}: {reason(error)}; {_remedy(url, error)}") from error
            raise
        except (BaseError, NotImplementedError) as error:
            now = time.monotonic()
            first_failure = first_failure or now
            left = first_failure + _patience(error, answered) - now
            if left <= 0:
                raise CacheError(f"{url}: {reason(error)}; {_remedy(url, error)}") from error
            if not warned and now - first_failure >= QUIET:
                warned = True
                log.warning("%s: %s; trying again for another %.0f s", url, reason(error), left)
        time.sleep(min(left, pause * SystemRandom().uniform(0.5, 1)))
        pause = min(2 * pause, LONGEST_PAUSE)


def reason(error: Exception) -> str:
    """The part of obstore's message that says what went wrong."""
    text, _, details = str(error).partition("\n\nDebug source")
    status = re.search(r"status code: (\d{3}[\w ]*)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    if status:
        return f"the server answered {status[1].strip()}{f' ({code[1]})' if code else ''}"
    if UNTRUSTED.search(str(error)):
        return "the server's certificate is not trusted here"
    causes = re.findall(r'(?:message|error): "([^"]+)"', details)
    said = text.rsplit(" - ", 1)[-1].split("\n", 1)[0]
    return f"{said} ({causes[-1]})" if causes else said


def _patience(error: Exception, answered: bool) -> float:
    """Seconds to retry; 0 for lasting failures. AlreadyExistsError: the object is being written or deleted."""
    status = _status(error)
    if isinstance(error, AlreadyExistsError):
        return PATIENCE
    lasts = isinstance(error, NotSupportedError | NotImplementedError) or HOPELESS.search(str(error))
    if lasts or (status and status not in PASSING):
        return 0.0
    return LOGIN_PATIENCE if LOGIN.search(str(error)) and not answered else PATIENCE


def _remedy(url: str, error: Exception) -> str:
    scheme, text = url.split(":", 1)[0], str(error)
    if "NoSuchBucket" in text:
        return "create the bucket or correct the URL"
    if ABROAD in text:
        return "set AWS_REGION to the bucket's region"
    if isinstance(error, NotSupportedError):
        return "serve the folder with a web server that answers range requests"
    if _status(error) in {"401", "403"} or LOGIN.search(text):
        return ACCESS.get(scheme, "let the web server serve and list this folder without a login")
    endpoint = "AWS_ENDPOINT_URL" if scheme == "s3" else "the URL"
    return f"check that {endpoint} is right and the server is up, then run the same command again"


def _status(error: Exception) -> str:
    found = re.search(r"status code: (\d{3})", str(error))
    return found[1] if found else ""
