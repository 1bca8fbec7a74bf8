import errno
import time

import pytest

from workers.git_errors import DETAIL_CHARACTERS, cleaner, error_from, error_from_os

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
    # What the remote writes itself decides nothing that happens here.
    ("remote: No space left on device\nfatal: early EOF", "network"),
    ("remote: fatal: loose object 12 is corrupt\nfatal: unable to access 'x': returned error: 500", "server"),
]


@pytest.mark.parametrize(("sentence", "cause"), SENTENCES)
def test_gits_sentences_have_causes(sentence: str, cause: str) -> None:
    error = error_from(sentence.encode(), cleaner())
    assert error.cause == cause
    assert str(error)


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
    ],
)
def test_noise_is_read_in_no_time(noise: str) -> None:
    started = time.monotonic()
    error_from(noise.encode(), cleaner(["s3cret"]))
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
