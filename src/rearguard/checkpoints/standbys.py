"""What is known of each place's warm standby, in the database."""

from __future__ import annotations

from typing import Any

from rearguard.checkpoints.registry import decode_instant, encode_instant
from rearguard.database import Connection, sql
from rearguard.model.service import Digest, Place
from rearguard.model.standby import StandbyState, WarmStandby


def get(connection: Connection, place: Place) -> WarmStandby | None:
    """The standby of a place; None when nobody looked yet, or the place wants none."""
    row = connection.execute(
        sql("SELECT * FROM standbys WHERE service = :s AND env = :e"), {"s": place.service, "e": place.env}
    ).first()
    return _standby(row._mapping) if row else None


def list_all(connection: Connection) -> tuple[WarmStandby, ...]:
    """The standbys of all places, by service and environment."""
    rows = connection.execute(sql("SELECT * FROM standbys ORDER BY service, env"))
    return tuple(_standby(row._mapping) for row in rows)


def put(connection: Connection, standby: WarmStandby) -> None:
    """Write what is known now over what was."""
    connection.execute(
        sql(
            "INSERT OR REPLACE INTO standbys (service, env, digest, version, state, reason, detail, since) "
            "VALUES (:service, :env, :digest, :version, :state, :reason, :detail, :since)"
        ),
        {
            "service": standby.place.service,
            "env": standby.place.env,
            "digest": standby.digest,
            "version": standby.version,
            "state": standby.state.value,
            "reason": standby.reason,
            "detail": standby.detail,
            "since": encode_instant(standby.since),
        },
    )


def forget(connection: Connection, place: Place) -> None:
    """Nothing is known any more: the place wants none."""
    connection.execute(
        sql("DELETE FROM standbys WHERE service = :s AND env = :e"), {"s": place.service, "e": place.env}
    )


def _standby(row: Any) -> WarmStandby:
    return WarmStandby(
        place=Place(service=row["service"], env=row["env"]),
        digest=Digest(row["digest"]) if row["digest"] else None,
        version=row["version"],
        state=StandbyState(row["state"]),
        reason=row["reason"],
        detail=row["detail"],
        since=decode_instant(row["since"]),
    )
