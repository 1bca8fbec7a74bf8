"""How a Remote is reached, with its credential decrypted for the one use."""

from dataclasses import replace

from repos.models import Remote
from workers.git_environment import RemoteAccess


def access_of(remote: Remote) -> RemoteAccess:
    """Raises SecretUnreadable if the credential can't be decrypted."""
    credential = remote.credential
    return RemoteAccess(
        url=remote.url,
        kind=credential.kind if credential else "none",
        username=credential.username if credential else "",
        secret=credential.secret.reveal() if credential else "",
        known_hosts=credential.known_hosts if credential else "",
        ca_bundle=remote.ca_bundle,
        insecure_skip_tls_verify=remote.insecure_skip_tls_verify,
    )


def fetch_access_of(remote: Remote) -> RemoteAccess:
    """The same for a fetch: where the host led the last poll. Raises SecretUnreadable."""
    access = access_of(remote)
    return replace(access, url=remote.redirected_to) if remote.redirected_to else access
