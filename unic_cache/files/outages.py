"""Which troubles of an object store pass by themselves, how long to wait for that, and how to tell those that do not.

obstore reports nearly all of them as one exception with a text, so this is where its texts are read.
"""

import logging
import re
import time
from collections.abc import Callable
from random import SystemRandom
from typing import TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError

from unic_cache.errors import CacheError

PATIENCE = 180.0  # seconds from a call's first failure to its last attempt
LOGIN_PATIENCE = 5.0  # seconds, for a login service that never answered
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between attempts, doubling
PASSING = {"408", "425", "429", "500", "502", "503", "504"}  # HTTP statuses worth another attempt
QUIET = 2.0  # seconds before an outage is told
LOGIN = re.compile(r"/latest/(api/token|meta-data)|/computeMetadata/|token request")  # asked if no key is set
ABROAD = "redirect without LOCATION"  # Amazon's answer to a request sent to the wrong region
UNTRUSTED = re.compile("InvalidCertificate|CERTIFICATE_VERIFY_FAILED")  # obstore's and urllib's words
HOPELESS = re.compile(f"{ABROAD}|{UNTRUSTED.pattern}|builder error|Header missing")  # the last two: not HTTP

ACCESS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN where there is one), or "
    "AWS_SKIP_SIGNATURE=true for a public bucket, and see what the bucket allows them",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file and see what the bucket allows it",
}

log = logging.getLogger(__name__)
T = TypeVar("T")


def outlive(url: str, call: Callable[[], T], answered: bool) -> T:
    """What `call` answers, asked again for as long as its trouble may pass.

    `answered`: the server has answered before, so that `url` and the credentials are right.
    Raises FileNotFoundError where there is no such object, and CacheError when waiting is of no use, or no more.
    """
    pause, first_failure, told = FIRST_PAUSE, 0.0, False
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
            if not told and now - first_failure >= QUIET:
                told = True
                log.warning("%s: %s; trying again for another %.0f s", url, reason(error), left)
        time.sleep(min(left, pause * SystemRandom().uniform(0.5, 1)))
        pause = min(2 * pause, LONGEST_PAUSE)


def reason(error: Exception) -> str:
    """The part of obstore's text that says what went wrong."""
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
    """Seconds; 0 for what will not pass. An object that exists and cannot be read is one being written or deleted."""
    status = _status(error)
    if isinstance(error, AlreadyExistsError):
        return PATIENCE
    if isinstance(error, NotSupportedError | NotImplementedError) or HOPELESS.search(str(error)):
        return 0.0
    if status and status not in PASSING:
        return 0.0
    return LOGIN_PATIENCE if LOGIN.search(str(error)) and not answered else PATIENCE


def _remedy(url: str, error: Exception) -> str:
    scheme, text = url.split(":", 1)[0], str(error)
    if "NoSuchBucket" in text:
        return "make the bucket or correct the URL"
    if ABROAD in text:
        return "set AWS_REGION to the bucket's region"
    if isinstance(error, NotSupportedError):
        return "serve the folder with a web server that answers range requests"
    if _status(error) in {"401", "403"} or LOGIN.search(text):
        return ACCESS.get(scheme, "let the web server serve and list this folder without a login")
    endpoint = "AWS_ENDPOINT_URL" if scheme == "s3" else "the URL"
    return f"see that {endpoint} is right and the server up, then run the same command again"


def _status(error: Exception) -> str:
    found = re.search(r"status code: (\d{3})", str(error))
    return found[1] if found else ""
