"""What every place for second copies promises; see the package."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from rearguard.errors import (
    DependencyError,
    IntegrityError,
    RefusedError,
)
from rearguard.ports import CheckpointCopy


class CheckpointCopyConformance:
    """The promises of `rearguard.ports.CheckpointCopy`."""

    @pytest.fixture
    def place(self) -> CheckpointCopy:
        """Override: an empty place that was never taken into use."""
        raise NotImplementedError("override the fixture `place`")

    @pytest.fixture
    def same_place(self) -> CheckpointCopy:
        """Override: the place of `place`, opened anew for the same store."""
        raise NotImplementedError("override the fixture `same_place`")

    @pytest.fixture
    def foreign_place(self) -> CheckpointCopy:
        """Override: the place of `place`, opened for another store."""
        raise NotImplementedError("override the fixture `foreign_place`")

    @pytest.fixture
    def absent_place(self) -> CheckpointCopy:
        """Override: a place that is not there."""
        raise NotImplementedError("override the fixture `absent_place`")

    def spoil(self, place: CheckpointCopy, sha256: str) -> None:
        """Override: change one byte of a blob behind the adapter's back."""
        raise NotImplementedError("override `spoil`")

    content = b"0123456789abcdef" * 70_001
    """More than a megabyte, and no multiple of a block."""

    @property
    def name(self) -> str:
        """The digest of `content`."""
        return hashlib.sha256(self.content).hexdigest()

    def ready(self, place: CheckpointCopy) -> CheckpointCopy:
        """Taken into use, with one blob."""
        place.prepare(known=False, anew=False)
        place.put(self.name, [self.content[:1000], b"", self.content[1000:]])
        return place

    def test_what_was_put_is_there_and_right(self, place: CheckpointCopy) -> None:
        """Also for whoever opens the place anew."""
        self.ready(place).verify(self.name, len(self.content))
        assert list(place.list()) == [self.name]
        assert b"".join(place.open(self.name)) == self.content

    def test_an_empty_blob_is_kept_too(self, place: CheckpointCopy) -> None:
        """A file of no bytes is a file."""
        place.prepare(known=False, anew=False)
        empty = hashlib.sha256(b"").hexdigest()
        place.put(empty, [])
        place.verify(empty, 0)
        assert b"".join(place.open(empty)) == b""

    def test_preparing_again_keeps_everything(self, place: CheckpointCopy, same_place: CheckpointCopy) -> None:
        """The next process goes on."""
        self.ready(place)
        same_place.prepare(known=True, anew=False)
        same_place.verify(self.name, len(self.content))

    def test_putting_again_changes_nothing(self, place: CheckpointCopy) -> None:
        """Idempotent by content."""
        self.ready(place).put(self.name, [self.content])
        assert list(place.list()) == [self.name]

    def test_bytes_that_are_not_what_the_name_says_are_not_kept(self, place: CheckpointCopy) -> None:
        """And what stood there under the name stays."""
        self.ready(place)
        for name in (self.name, "0" * 64):
            with pytest.raises(IntegrityError) as refused:
                place.put(name, [b"other"])
            assert refused.value.code == "blob_altered"
        assert list(place.list()) == [self.name]
        place.verify(self.name, len(self.content))

    def test_a_source_that_fails_leaves_nothing(self, place: CheckpointCopy) -> None:
        """The failure is the caller's own."""

        def chunks() -> Iterator[bytes]:
            yield b"begun"
            raise IntegrityError("blob_unreadable", "of the source")

        place.prepare(known=False, anew=False)
        with pytest.raises(IntegrityError) as failed:
            place.put(self.name, chunks())
        assert failed.value.message == "of the source"
        assert list(place.list()) == []

    def test_an_altered_blob_is_found_and_can_be_replaced(self, place: CheckpointCopy) -> None:
        """Reading back tells; a put mends."""
        self.spoil(self.ready(place), self.name)
        with pytest.raises(IntegrityError) as found:
            place.verify(self.name, len(self.content))
        assert found.value.code == "blob_altered"
        place.put(self.name, [self.content])
        place.verify(self.name, len(self.content))

    def test_a_missing_blob_is_named_so(self, place: CheckpointCopy) -> None:
        """Both ways of reading."""
        self.ready(place).remove(self.name)
        for read in (lambda: place.verify(self.name, 1), lambda: list(place.open(self.name))):
            with pytest.raises(IntegrityError) as found:
                read()
            assert found.value.code == "blob_missing"

    def test_removing_twice_is_as_good_as_once(self, place: CheckpointCopy) -> None:
        """Idempotent."""
        self.ready(place).remove(self.name)
        place.remove(self.name)
        assert list(place.list()) == []

    def test_a_published_file_is_no_blob(self, place: CheckpointCopy) -> None:
        """Twice, to replace it."""
        self.ready(place).publish("registry.yaml", b"one")
        place.publish("registry.yaml", b"two")
        assert list(place.list()) == [self.name]

    def test_the_copy_of_another_store_is_refused(self, place: CheckpointCopy, foreign_place: CheckpointCopy) -> None:
        """Nothing of it is touched, not even when somebody says that the disk is new."""
        self.ready(place)
        for anew in (False, True):
            with pytest.raises(RefusedError) as refused:
                foreign_place.prepare(known=False, anew=anew)
            assert refused.value.code == "mirror_foreign"
        place.verify(self.name, len(self.content))

    def test_an_empty_place_that_was_known_is_refused_until_somebody_says_so(self, place: CheckpointCopy) -> None:
        """A mount point without its disk."""
        with pytest.raises(DependencyError) as refused:
            place.prepare(known=True, anew=False)
        assert refused.value.code == "mirror_unavailable"
        place.prepare(known=True, anew=True)

    def test_a_place_that_is_not_there_is_unavailable(self, absent_place: CheckpointCopy) -> None:
        """And is not made."""
        with pytest.raises(DependencyError) as refused:
            absent_place.prepare(known=False, anew=False)
        assert refused.value.code == "mirror_unavailable"

    def test_it_names_its_storage(self, place: CheckpointCopy) -> None:
        """R18. Empty when it cannot be found out."""
        assert isinstance(self.ready(place).domain(), str)
