"""The database: schema, transactions, and who may write as the officer."""

from rearguard.database.connection import DATABASE_NAME, Connection, Database, open_database, open_read_only, sql
from rearguard.database.lock import (
    LEASE_S,
    OfficerLock,
    Presence,
    make_way,
    officer_alive,
    officer_presence,
    write_lock_holders,
)
from rearguard.database.schema import SCHEMA_VERSION

__all__ = [
    "DATABASE_NAME",
    "LEASE_S",
    "SCHEMA_VERSION",
    "Connection",
    "Database",
    "OfficerLock",
    "Presence",
    "make_way",
    "officer_alive",
    "officer_presence",
    "open_database",
    "open_read_only",
    "sql",
    "write_lock_holders",
]
