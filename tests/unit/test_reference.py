"""What a person may write as the place of a checkpoint."""

from __future__ import annotations

import pytest

from rearguard.errors import UsageError
from rearguard.model.carrying import Carriage
from rearguard.rules.reference import parse_reference, refuse_plain_http


@pytest.mark.parametrize(
    "text",
    [
        "docker://registry.example.com/models/fraud:v1",
        "docker://127.0.0.1:5000/fraud:v1",
        "docker://[::1]:5000/fraud:v1",
        "docker://localhost:5000/a/b/c_d:V1.0_x",
        "docker://registry.example.com/fraud@sha256:" + "0" * 64,
        "oci:/srv/state:fraud/v1",
        "oci-archive:model.tar:v1",
        "dir:/srv/out",
    ],
)
def test_a_reference_is_written_back_as_it_was_read(text: str) -> None:
    assert str(parse_reference(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fraud:v1",
        "docker://",
        "docker://fraud:v1",
        "docker://host/fraud",
        "docker://host/fraud:",
        "docker://host/Fraud:v1",
        "docker://host/../fraud:v1",
        "docker://user:word@host/fraud:v1",
        "docker://host/fraud:v1@sha256:" + "0" * 64,
        "docker://host/fraud@sha256:0",
        "docker://-x/fraud:v1",
        "docker://host/fraud:v1 --insecure-policy",
        "docker-daemon:fraud:v1",
        "containers-storage:fraud:v1",
        "oci:/srv/state",
        "oci::v1",
        "oci:/srv:state:v1",
        "oci:/srv/state:a b",
        "dir:",
        "dir:/a:b",
        "--help",
        "dir:/a\nb",
    ],
)
def test_anything_else_is_refused_and_the_accepted_forms_are_told(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_reference(text)
    assert refused.value.code == "reference_malformed"
    assert "docker://HOST/REPO:TAG" in refused.value.hint


@pytest.mark.parametrize("host", ["127.0.0.1:5000", "127.9.8.7", "localhost", "[::1]:5000"])
def test_plain_http_is_for_this_host(host: str) -> None:
    refuse_plain_http(parse_reference(f"docker://{host}/fraud:v1"), Carriage(plain_http=True))


@pytest.mark.parametrize(
    "host", ["registry.example.com", "10.0.0.1:5000", "127.0.0.1.example.com", "localhost.example.com"]
)
def test_plain_http_to_another_host_is_refused(host: str) -> None:
    with pytest.raises(UsageError) as refused:
        refuse_plain_http(parse_reference(f"docker://{host}/fraud:v1"), Carriage(plain_http=True))
    assert refused.value.code == "plain_http_refused"
