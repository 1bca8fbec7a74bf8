import errno
import time

import pytest

from repos.breaker import Word, heard
from tests.workers.refusals import END, FRAME, REFUSALS
from workers.git_errors import DETAIL_CHARACTERS, cleaner, error_from_os
from workers.git_words import error_from, refusal, remote_error_from

# What git 2.39 says, word for word.
SENTENCES = [
    ("fatal: remote error: upload-pack: not our ref 1111", "commit-not-found"),
    ("error: Server does not allow request for unadvertised object 1111", "commit-not-found"),
    ("fatal: could not read Username for 'https://h': terminal prompts disabled", "authentication"),
    ("fatal: Authentication failed for 'https://h/x'", "authentication"),
    (
        "git@h: Permission denied (publickey).\nfatal: Could not read from remote repository.",
        "authentication",
    ),
    ("fatal: unable to access 'https://h/x/': The requested URL returned error: 403", "refused"),
    ("fatal: unable to access 'https://h/x/': The requested URL returned error: 429", "rate-limit"),
    ("fatal: unable to access 'https://h/x/': The requested URL returned error: 503", "server"),
    ("error: RPC failed; HTTP 502 curl 22 The requested URL returned error: 502", "server"),
    ("fatal: repository 'https://h/x/' not found", "not-found"),
    ("fatal: '/srv/x' does not appear to be a git repository", "not-found"),
    ("fatal: unable to access 'https://h/x/': Could not resolve host: h", "network"),
    ("fatal: unable to access 'https://h/x/': Failed to connect to h port 443 after 0 ms", "network"),
    ("error: RPC failed; curl 28 Operation too slow\nfatal: early EOF", "network"),
    ("ssh: connect to host h port 22: Connection refused", "network"),
    ("Connection timed out during banner exchange", "network"),
    ("fatal: unable to access 'https://h/x/': server certificate verification failed. CAfile: none", "tls"),
    ("fatal: unable to access 'https://h/x/': SSL certificate problem: certificate has expired", "tls"),
    ("fatal: unable to access 'https://h/x/': gnutls_handshake() failed: Handshake failed", "tls"),
    ("Host key verification failed.\nfatal: Could not read from remote repository.", "host-key"),
    ("No ED25519 host key is known for h and you have requested strict checking.", "host-key"),
    ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "host-key"),
    ("fatal: unable to update url base from redirection:\n  asked for: http://h/x", "redirect"),
    ("error: file write error: No space left on device\nfatal: index-pack failed", "disk-full"),
    ("fatal: Unable to create '/m/1/shallow.lock': Read-only file system", "disk"),
    ("fatal: loose object 12 (stored in objects/12) is corrupt", "corrupt"),
    ("error: h did not send all necessary objects", "corrupt"),
    ("fatal: missing blob object '12'", "corrupt"),
    ("fatal: bad config line 1 in file config", "corrupt"),
    ("error: object 12: hasDotdot: contains '..'\nfatal: fsck error in packed object", "bad-objects"),
    (
        "error: inflate: data stream error (incorrect header)\nfatal: pack is corrupted (SHA1 mismatch)",
        "bad-objects",
    ),
    ("fatal: transport 'ext' not allowed", "access"),
    ("sh: 5: git: not found", "git-missing"),
    ("fatal: something new", "git"),
    ("", "git"),
    # Names that users and servers chose decide nothing.
    (
        "fatal: unable to access 'https://h/infra/certificate-manager.git/': Failed to connect to h port 443 after 0 ms",
        "network",
    ),
    ("fatal: unable to access 'https://h/x/': Failed to connect to ssl.example.com port 443 after 0 ms", "network"),
    ("fatal: unable to access 'https://h/x/': Could not resolve host: tls.example.com", "network"),
    ("fatal: unable to access 'https://h/x/': Could not resolve proxy: certificate", "network"),
    ("ssh: connect to host ssl.example.com port 22: Connection refused", "network"),
    ("ssh: Could not resolve hostname ssl.example.com: Name or service not known", "network"),
    ("Connection to ssl.example.com closed by remote host.\nfatal: early EOF", "network"),
    ("Timeout, server tls.example.com not responding.\nfatal: early EOF", "network"),
    ("fatal: repository 'https://h/ssl/it's-a-certificate.git/' not found", "not-found"),
    ("fatal: unable to access 'https://h/ssl/': server certificate verification failed. CAfile: none", "tls"),
    # What the remote writes itself decides nothing that happens here.
    ("remote: No space left on device\nfatal: early EOF", "network"),
    ("remote: fatal: loose object 12 is corrupt\nfatal: unable to access 'x': returned error: 500", "server"),
    ("remote: one\u2028No space left on device\nfatal: early EOF", "network"),
    ("fatal: remote error: No space left on device", "git"),
    ("fatal: remote error: bad object HEAD", "git"),
    ("fatal: remote error: one\nfatal: bad object HEAD\nerror: No space left on device", "git"),
    ("fatal: remote error: certificate has expired", "git"),
    ("fatal: remote error: FATAL: R any x nobody DENIED by fallthru\n(or you mis-spelled the reponame)", "refused"),
    ("fatal: remote error: Repository not found.", "not-found"),
    # Before git has done anything here, that goes for lines without a mark as well.
    ("No space left on device\nfatal: Could not read from remote repository.", "network"),
    ("fatal: bad object HEAD\nfatal: Could not read from remote repository.", "network"),
    ("Use an SSH certificate.\nfatal: Could not read from remote repository.", "network"),
    # These are ssh's.
    (
        "ssh: connect to host h port 22: Operation not permitted\nfatal: Could not read from remote repository.",
        "network",
    ),
    ("Timeout, server h not responding.\nfatal: Could not read from remote repository.", "network"),
    ("sh: 1: ssh: not found\nfatal: Could not read from remote repository.", "network"),
    ("remote: Not what you think.\nfatal: early EOF", "network"),
]


@pytest.mark.parametrize(("sentence", "cause"), SENTENCES)
def test_gits_sentences_have_causes(sentence: str, cause: str) -> None:
    error = error_from(sentence.encode(), cleaner())
    assert error.cause == cause
    assert str(error)


@pytest.mark.parametrize(("words", "cause"), REFUSALS)
def test_forges_refusals_have_causes(words: str, cause: str) -> None:
    known = remote_error_from(words, cleaner())
    assert (known and known.cause, error_from((words + END).encode(), cleaner()).cause) == (cause, cause)
    # A host that refuses is not silent; one that fails is.
    assert heard(cause) is (Word.SILENCE if cause == "server" else Word.ANSWER)


@pytest.mark.parametrize(
    "words", ["No space left on device", "fatal: bad object HEAD", "SSL certificate problem", "hello"]
)
def test_a_server_speaks_of_nothing_of_ours(words: str) -> None:
    assert remote_error_from(words, cleaner()) is None
    assert remote_error_from(f"remote: {words}", cleaner()) is None


def test_a_refusal_in_unknown_words_is_shown_and_is_an_answer() -> None:
    error = error_from(f"{FRAME}\nremote: \nremote: ERROR: On Sundays\nremote: we rest.\n{END}".encode(), cleaner())
    assert (error.cause, heard(error.cause)) == ("refused", Word.ANSWER)
    assert str(error).startswith("The server refused the request") and str(error).endswith(
        ": ERROR: On Sundays we rest."
    )


def test_a_refusal_is_fit_to_be_shown() -> None:
    words = "remote: \x1b[31ms3cret\x07 for https://ada:pw@h/x " + "x" * 10_000
    for error in (
        refusal(words, cleaner(["s3cret"])),
        error_from(f"{words}\n{END}".encode(), cleaner(["s3cret"])),
        error_from(f"remote: not permitted: {words}\n{END}".encode(), cleaner(["s3cret"])),
    ):
        assert error.cause == "refused"
        assert str(error).isprintable() and len(str(error)) < 300 and len(error.detail) <= DETAIL_CHARACTERS + 1
        assert "s3cret" not in f"{error} {error.detail}" and "pw" not in f"{error} {error.detail}"


def test_words_that_came_with_no_secret_to_hide_are_not_shown() -> None:
    """Over http a server knows the token, and whoever reads its packets may not know it."""
    error = error_from(b"fatal: remote error: s3cret is not permitted", cleaner())
    assert error.cause == "refused" and "s3cret" not in str(error)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("token s3cret and s3cret", "token *** and ***"),
        ("fatal: 'https://ada:pw@h/x' failed", "fatal: 'https://***@h/x' failed"),
        ("Authorization: Basic Zm9v", "Authorization: Basic ***"),
        ("a\x1b[31m\n\x07b\u202ec", "a [31m b c"),
    ],
)
def test_words_are_cleaned(text: str, shown: str) -> None:
    assert cleaner(["s3cret", ""])(text) == shown


def test_a_secret_within_a_longer_secret_hides_neither() -> None:
    assert cleaner(["ab", "abcd"])("abcd ab") == "*** ***"


def test_words_are_cut_to_their_end() -> None:
    shown = cleaner()("x" * 10_000 + " fatal: the end")
    assert len(shown) == DETAIL_CHARACTERS + 1
    assert shown.endswith("fatal: the end")


@pytest.mark.parametrize(
    "noise",
    [
        "x" * 60_000,
        "packed object " * 4_000,
        "cannot create " * 4_500,
        "a://" * 15_000,
        "a://b:" * 10_000,
        "-> \n" * 15_000,
        "repository '" * 5_000,
        "remote: repository project \n" * 3_000,
        ("repository " * 50 + "\n") * 120,
        ("remote: " + "permission to " * 30 + "\n") * 120,
        ("could not resolve " * 30 + "\n") * 120,
    ],
)
def test_noise_is_read_in_no_time(noise: str) -> None:
    started = time.monotonic()
    error_from(noise.encode(), cleaner(["s3cret"]))
    error_from((noise + END).encode(), cleaner(["s3cret"]))
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.ENOSPC, "disk-full"),
        (errno.EDQUOT, "disk-full"),
        (errno.EFBIG, "disk-full"),
        (errno.EROFS, "disk"),
        (errno.EACCES, "disk"),
    ],
)
def test_errors_of_the_disk(number: int, cause: str) -> None:
    assert error_from_os(OSError(number, "x")).cause == cause
