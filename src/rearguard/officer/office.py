"""An open state directory with its settings: what every operation of the officer works on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import cached_property
from pathlib import Path

from rearguard import plugins
from rearguard.checkpoints import layout, registry_file
from rearguard.checkpoints.store import ContentStore
from rearguard.config.channels import filled, refuse_unfilled
from rearguard.config.playbook import read_playbook
from rearguard.config.settings import read_settings
from rearguard.database import Database, make_way, open_database, open_read_only, sql
from rearguard.edge import SystemClock, SystemIds
from rearguard.errors import ConfigError, ConflictError, DatabaseBusyError, DependencyError, NotFoundError
from rearguard.evidence.projection import project
from rearguard.handoffs import courier, outbox
from rearguard.model.breach import Limits
from rearguard.model.service import Digest, Place
from rearguard.model.settings import ChannelSettings, PlaceSettings, Playbook, Settings
from rearguard.model.time import NS_PER_S
from rearguard.ports import Channel, Clock, IdSource, ResumableSource, Target
from rearguard.recovery.context import RecoveryContext
from rearguard.watch import memory
from rearguard.watch.feed import Feed, limits_for

SETTINGS_NAME = "rearguard.yaml"
STATE_NAME = ".rearguard"


class Office:
    """State directory, database, settings, clock and adapters, opened once per process."""

    def __init__(
        self,
        *,
        state: Path,
        settings_path: Path,
        database: Database,
        clock: Clock | None = None,
        ids: IdSource | None = None,
    ) -> None:
        self.state = state
        self.settings_path = settings_path
        self.database = database
        self.clock: Clock = clock or SystemClock()
        self.ids: IdSource = ids or SystemIds()
        self.store = ContentStore(state)
        self.stopping = threading.Event()
        self.held: Callable[[], bool] = lambda: True
        """Whether this process, if it was the officer, still is; the engine knows."""
        self.unpublished: DependencyError | None = None
        self.undelivered: ConfigError | None = None
        """Why this process could not try a channel; its messages stay open."""
        self._targets: dict[Place, Target] = {}
        self._feeds: dict[Place, Feed] = {}

    @cached_property
    def settings(self) -> Settings:
        """All of `rearguard.yaml`, read on first use. Raises `ConfigError`."""
        return read_settings(self.settings_path)

    @cached_property
    def playbook(self) -> Playbook:
        """All of the playbook that the settings name. Raises `ConfigError`."""
        return read_playbook(Path(self.settings.playbook_path), channels=[c.name for c in self.settings.channels])

    def reread(self) -> None:
        """Read settings and playbook anew: a standby may have waited for days.

        Raises `ConfigError`, also of a channel that cannot be filled and of an adapter that cannot be built; both then stay
        as they were.
        """
        settings = read_settings(self.settings_path)
        playbook = read_playbook(Path(settings.playbook_path), channels=[c.name for c in settings.channels])
        _refuse_silent(settings)
        for place in settings.places:
            target, telemetry = place.target, place.telemetry
            plugins.load("rearguard.targets", target.adapter)(place.place, target.options).close()
            build = plugins.load("rearguard.telemetry", telemetry.adapter)
            build(place.place, telemetry.options, self.clock.now()).close()
        self.__dict__.update(settings=settings, playbook=playbook)

    def place(self, service: str, env: str | None) -> PlaceSettings:
        """Settings of a place; `env` may be left out when the service has one only.

        Raises `NotFoundError` `service_unknown`, `env_unknown` or `env_ambiguous`.
        """
        of_service = [p for p in self.settings.places if p.place.service == service]
        if not of_service:
            known = ", ".join(sorted({p.place.service for p in self.settings.places}))
            raise NotFoundError(
                "service_unknown",
                f"no service {service!r} in {self.settings.file}; declared: {known}",
                "name a declared service",
            )
        names = ", ".join(p.place.env for p in of_service)
        if env is None:
            if len(of_service) > 1:
                raise NotFoundError("env_ambiguous", f"{service} has the environments {names}", "add --env")
            return of_service[0]
        for found in of_service:
            if found.place.env == env:
                return found
        raise NotFoundError(
            "env_unknown", f"{service} has no environment {env!r}; declared: {names}", "name a declared one"
        )

    def target_of(self, place: Place) -> Target:
        """The target of a place, built once by its adapter's name."""
        if place not in self._targets:
            settings = self.place(place.service, place.env).target
            self._targets[place] = plugins.load("rearguard.targets", settings.adapter)(place, settings.options)
        return self._targets[place]

    def feed_of(self, place: Place) -> Feed:
        """The telemetry of a place, its limits as the database says now.

        Built once: from what the last officer saved and what came since, or else by reading back a baseline period.
        """
        settings = self.place(place.service, place.env)
        if place not in self._feeds:
            now = self.clock.now()
            since = now.plus(-settings.baseline_s * NS_PER_S)
            build = plugins.load("rearguard.telemetry", settings.telemetry.adapter)
            remembered = memory.load(self.database, settings, now)
            source = build(place, settings.telemetry.options, since)
            if remembered is not None and not isinstance(source, ResumableSource):
                source.close()
                source = build(place, settings.telemetry.options, remembered.counted_to)
            self._feeds[place] = Feed(settings, source, remembered)
        feed = self._feeds[place]
        feed.set_limits(self.limits(settings))
        return feed

    def limits(self, settings: PlaceSettings) -> dict[Digest, Limits]:
        """Limits of each digest that was deployed at a place: the policy's, with the baseline frozen at its rollout."""
        with self.database.reading() as connection:
            rows = connection.execute(
                sql("SELECT digest, baseline FROM deployments WHERE service = :service AND env = :env ORDER BY id"),
                {"service": settings.place.service, "env": settings.place.env},
            ).all()
        return {
            Digest(row.digest): limits_for(
                settings, baseline=Decimal(row.baseline) if row.baseline is not None else None
            )
            for row in rows
        }

    def recovery_context(self) -> RecoveryContext:
        """What the steps of a run work with."""
        return RecoveryContext(
            database=self.database,
            state=self.state,
            settings=self.settings,
            playbook=self.playbook,
            clock=self.clock,
            store=self.store,
            target_of=self.target_of,
            feed_of=self.feed_of,
            stopping=self.stopping,
            held=self.held,
        )

    def publish(self, *, registry_changed: bool = False) -> None:
        """Bring the named files up to date with the database.

        What was recorded stays recorded when a file cannot be written: the failure is kept in `unpublished`, for the
        interface to tell, and the next call tries again.
        """
        try:
            project(self.database, self.state)
            if registry_changed or registry_file.is_behind(self.state):
                self.export_registry()
            self.unpublished = None
        except DependencyError as error:
            self.unpublished = error

    def export_registry(self, *, mend: bool = False) -> None:
        """Write the OCI layout and `checkpoint_registry.yaml` anew; with `mend` every manifest and config is read before.

        Raises `DependencyError` `file_not_written`, `store_not_written`.
        """
        write = layout.mend if mend else layout.write
        registry_file.export(self.database, self.state, lambda: write(self.database, self.store))

    def channels(self) -> dict[str, Callable[[], Channel]]:
        """How each declared channel is built, by name; building one raises `ConfigError` `config_variable`."""

        def builder(settings: ChannelSettings) -> Callable[[], Channel]:
            return lambda: plugins.load("rearguard.channels", settings.kind)(filled(settings))

        return {channel.name: builder(channel) for channel in self.settings.channels}

    def settle_messages(self) -> None:
        """End what waits for a channel that is not declared any more, or for none."""
        outbox.settle(self.database, [channel.name for channel in self.settings.channels])

    def deliver(self) -> int:
        """Try each channel once, for a process that ends soon; returns how many messages stay open.

        A channel whose environment variables this process lacks is left to one that has them: that is no failure of the
        channel. Why stands in `undelivered`, for the interface to tell.
        """
        channels, able = self.channels(), {}
        for settings in self.settings.channels:
            try:
                filled(settings)
                able[settings.name] = channels[settings.name]
            except ConfigError as error:
                self.undelivered = error
        return courier.deliver_once(self.database, self.clock, able, declared=frozenset(channels))

    def refuse_silent_channels(self) -> None:
        """For a process that others rely on to be told. Raises `ConfigError`, as `filled`, of channels and heartbeat."""
        _refuse_silent(self.settings)

    def retire(self) -> None:
        """For a process that was the officer, is no more, and may be it again: the adapters are built anew then."""
        for feed in self._feeds.values():
            feed.close()
        for target in self._targets.values():
            target.close()
        self._feeds.clear()
        self._targets.clear()
        self.stopping.clear()

    def close(self) -> None:
        """Let go of everything."""
        self.retire()
        self.database.close()


def _refuse_silent(settings: Settings) -> None:
    beat = settings.heartbeat
    refuse_unfilled((*settings.channels, *((beat.channel,) if beat else ())))


def find_files(state: Path | None, settings_path: Path | None) -> tuple[Path, Path]:
    """State directory and settings file, each as named or found from the other.

    The state stands beside the settings file as `.rearguard`, so that naming one of the two is enough from any folder:
    a command that quietly worked on another, empty state would be worse than one that fails. With neither named, both
    are looked for in the current folder. Raises `ConfigError` `settings_missing`.
    """
    if settings_path is not None:
        return (state if state is not None else settings_path.parent / STATE_NAME), settings_path
    if state is None:
        state, candidates = Path(STATE_NAME), [Path(STATE_NAME) / SETTINGS_NAME, Path(SETTINGS_NAME)]
    else:
        candidates = [state / SETTINGS_NAME, state.parent / SETTINGS_NAME, Path(SETTINGS_NAME)]
    for candidate in candidates:
        if candidate.exists():
            return state, candidate
    raise ConfigError(
        "settings_missing",
        f"no {SETTINGS_NAME} in {state} or in the current folder",
        "write one with `rearguard init`, or name it with --config",
        file=SETTINGS_NAME,
    )


@contextmanager
def open_office(
    state: Path | None,
    settings_path: Path | None = None,
    *,
    write: bool = True,
    create: bool = True,
    as_officer: bool = False,
    patient: bool = False,
) -> Iterator[Office]:
    """Open for commands that write, or read-only (R47), and close at the end.

    Raises `NotFoundError` `state_absent` when there is no state and this caller may not begin one, `ConflictError`
    `officer_alive` when this caller wants to be the officer and another one is, unless it is `patient`; and unless it is,
    `DatabaseBusyError` when that one hangs and somebody else keeps everybody from writing.
    """
    state, path = find_files(state, settings_path)
    state = state.absolute()
    if as_officer:
        try:
            make_way(state, SystemClock().now())
        except (ConflictError, DatabaseBusyError):
            if not patient:
                raise
    if write and not create:
        open_read_only(state).close()
    database = open_database(state) if write else open_read_only(state)
    office = Office(state=state, settings_path=path, database=database)
    try:
        yield office
    finally:
        office.close()
