"""The admin pages: the same doors as REST, and the machinery to look at."""

from repos.admin import clusters, credentials, gitrepos, machinery, probes

__all__ = ["clusters", "credentials", "gitrepos", "machinery", "probes"]
