"""What forges write, over ssh, to those whom they give nothing, and the causes that their words name."""

# What git ends with where it was given nothing over ssh.
END = """fatal: Could not read from remote repository.

Please make sure you have the correct access rights
and the repository exists.
"""
FRAME = "remote: " + "=" * 72
GITLAB = (
    f"remote: \n{FRAME}\nremote: \nremote: ERROR: The project you were looking for could not be found or you don't have "
    f"permission to view it.\n\nremote: \n{FRAME}\nremote: \n"
)
BITBUCKET = (
    "remote: You may not have access to this repository or it no longer exists in this workspace. If you think this "
    "repository exists and you have access, make sure you are authenticated.\n"
)
REFUSALS = [
    (GITLAB, "not-found"),
    ("remote: ERROR: Your SSH key has expired.\n", "authentication"),
    ("remote: ERROR: You are not allowed to download code from this project.\n", "refused"),
    ("remote: ERROR: This endpoint has been requested too many times. Try again later.\n", "rate-limit"),
    ("remote: ERROR: Internal API unreachable\n", "server"),
    (
        "remote: ERROR: The git server, Gitaly, is not available at this time. Please contact your administrator.\n",
        "server",
    ),
    ("remote: GitLab: rpc error: code = Unavailable desc = connection refused\n", "server"),
    ("remote: ERROR: GitLab is currently unable to handle this request due to load (ID 1).\n", "rate-limit"),
    (
        "remote: TF400733: The request has been canceled: Request was blocked due to exceeding usage of resource\n",
        "rate-limit",
    ),
    ("remote: Public key authentication failed.\n", "authentication"),
    ("ERROR: Repository not found.\n", "not-found"),
    ("ERROR: Permission to team/shop.git denied to ada.\n", "refused"),
    (
        "ERROR: The 'team' organization has enabled or enforced SAML SSO. To access\nthis repository, you must\n",
        "refused",
    ),
    ("repository access denied. access via a deployment key is read-only.\n", "refused"),
    ("conq: repository does not exist.\n", "not-found"),
    (BITBUCKET, "not-found"),
    ("FATAL: R any team/shop nobody DENIED by fallthru\n(or you mis-spelled the reponame)\n", "refused"),
    ("fatal: project not found: team/shop\n", "not-found"),
    ("fatal: upload-pack not permitted on team/shop\n", "refused"),
    ("error:\nerror: Cannot find repository: team/shop\nerror:\n", "not-found"),
    ("error: User: 1:ada with Key: 2:key is not authorized to read team/shop.\n", "refused"),
]
