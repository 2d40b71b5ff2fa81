"""Publishing an export on the Hugging Face hub. Nothing is sent without --push."""

from pathlib import Path

from huggingface_hub import HfApi, constants

from unic_cache.errors import ConfigError, UnicCacheError

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def check_token(repo: str) -> None:
    """ConfigError without a token that the hub takes, or with one that only reads: told before any work is done."""
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"--push {repo}: HF_HUB_OFFLINE is set; unset it to publish")
    try:
        user = HfApi().whoami()
    except Exception as error:  # whatever the hub's client and its transport raise
        raise ConfigError(f"--push {repo}: the hub knows no user ({_said(error)}); {LOG_IN}") from error
    token = (user.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise ConfigError(f"--push {repo}: the token of {user.get('name')} only reads; {LOG_IN}")


def push(folder: str, repo: str, private: bool, about: str) -> str:
    """Upload the folder as one commit of the model `repo`, made if it is not there; its address.

    UnicCacheError if the hub refuses or does not answer, or if a `private` model is there and public; the folder stays.
    """
    api = HfApi()
    try:
        made = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise PermissionError(f"{repo} is public; make it private on the hub, or leave out --private")
        api.upload_folder(repo_id=repo, folder_path=Path(folder), commit_message=about)
    except Exception as error:  # as above
        raise UnicCacheError(
            f"--push {repo}: {_said(error)}. {folder} is whole; once that is settled: hf upload {repo} {folder}"
        ) from error
    return str(made)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
