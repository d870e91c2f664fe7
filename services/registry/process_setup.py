"""What the registry service and its ingest process set up alike: stores, catalogue, base model, checks and sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from celery import Celery
from redis.asyncio import Redis

from hilora.access import AdapterAccess
from services.registry.catalog import Catalog
from services.registry.entrypoints.tasks import INGEST_QUEUE_KEY, INGEST_TASK, build_celery_app
from services.registry.infra.archive import ArchiveLimits, unpack
from services.registry.infra.audit_log import DiskAuditLog
from services.registry.infra.base_model import TransformersBaseModel
from services.registry.infra.celery_queue import CeleryIngestQueue
from services.registry.infra.hub_source import HubSource
from services.registry.infra.local_source import LocalFolderSource
from services.registry.infra.object_source import ObjectStoreSource
from services.registry.infra.profile_sources import build_profile_texts
from services.registry.infra.redis_catalog import RedisCatalogIndex
from services.registry.infra.redis_connection import broker_url_of, open_redis
from services.registry.infra.redis_jobs import RedisJobStore
from services.registry.infra.safetensors_reader import HardenedSafetensorsReader
from services.registry.infra.staging import DiskStagingArea
from services.registry.infra.store_migration import DataFolder
from services.registry.infra.transfer import FetchLimits
from services.registry.infra.url_source import UrlSource
from services.registry.job import SourceKind
from services.registry.lifecycle import AdapterLifecycle
from services.registry.missing_profiles import MissingProfiles, ProfileRetryPolicy
from services.registry.ports import AdapterSource, ArchiveUnpacker, ProfileTexts
from services.registry.profile_orders import ProfileOrders
from services.registry.publication import CatalogPublisher
from services.registry.settings import RegistrySettings
from services.registry.validation import AdapterValidator, ValidationLimits


@dataclass(frozen=True, kw_only=True)
class SharedParts:
    """What service and ingest process have in common; each process has its own of each."""

    redis: Redis
    celery: Celery
    queue: CeleryIngestQueue
    staging: DiskStagingArea
    data: DataFolder
    jobs: RedisJobStore
    audit: DiskAuditLog
    publisher: CatalogPublisher
    catalog: Catalog
    lifecycle: AdapterLifecycle
    profile_texts: tuple[ProfileTexts, ...]
    orders: ProfileOrders
    missing_profiles: MissingProfiles
    base: TransformersBaseModel
    validator: AdapterValidator
    sources: Mapping[SourceKind, AdapterSource]
    unpack: ArchiveUnpacker
    taken_names: frozenset[str]
    """What clients call the base."""


def build_shared_parts(settings: RegistrySettings) -> SharedParts:
    """The parts of one process; nothing is connected or loaded before it is used."""
    data_dir = settings.data_dir
    redis_url = settings.redis_url.get_secret_value()
    redis = open_redis(redis_url)
    celery = build_celery_app(broker_url_of(redis_url), visibility_seconds=settings.ingest_visibility_seconds)
    queue = CeleryIngestQueue(app=celery, task_name=INGEST_TASK, queue_key=INGEST_QUEUE_KEY, redis=redis)
    staging = DiskStagingArea(data_dir / "incoming")
    jobs = RedisJobStore(redis, lease_seconds=settings.job_lease_seconds, max_finished_jobs=settings.max_finished_jobs)
    data = DataFolder(data_dir)
    profile_texts = build_profile_texts(
        settings.profile_sources,
        hub_cache=data_dir / "hub" if settings.allow_hub else None,
        hub_token=settings.hub_token.get_secret_value() if settings.hub_token else None,
        worker_address=settings.worker_address,
        identity=settings.tls_identity(),
    )
    orders = ProfileOrders(
        staging=staging,
        jobs=jobs,
        queue=queue,
        registrations=data.registrations,
        sources=[texts.source for texts in profile_texts],
    )
    index = RedisCatalogIndex(redis, max_kept_changes=settings.max_kept_changes)
    publisher = CatalogPublisher(
        index=index, registrations=data.registrations, artifacts=data.artifacts, profiles=data.profiles
    )
    base = TransformersBaseModel(
        settings.base_model,
        name=settings.base_model_name or _public_name(settings.base_model),
        cache_folder=data_dir / "cache",
    )
    # A router without a name of its own for the base shows the last part of a hub id.
    taken_names = frozenset({base.name, base.name.rpartition("/")[2]})
    unpack_limited = partial(
        unpack,
        limits=ArchiveLimits(
            max_members=settings.max_archive_members,
            max_unpacked_bytes=settings.max_unpacked_bytes,
            max_ratio=settings.max_archive_ratio,
        ),
    )
    return SharedParts(
        redis=redis,
        celery=celery,
        queue=queue,
        staging=staging,
        data=data,
        jobs=jobs,
        audit=DiskAuditLog(
            data_dir / "audit", max_file_bytes=settings.audit_max_file_bytes, max_files=settings.audit_max_files
        ),
        publisher=publisher,
        catalog=Catalog(
            index=index,
            registrations=data.registrations,
            artifacts=data.artifacts,
            profiles=data.profiles,
            publisher=publisher,
            holds_new_versions=settings.admission == "quarantine-first",
            default_access=AdapterAccess(trust_tier=settings.default_trust_tier),
        ),
        lifecycle=AdapterLifecycle(
            publisher=publisher,
            registrations=data.registrations,
            profiles=data.profiles,
            taken_names=taken_names,
            orders=orders,
        ),
        profile_texts=profile_texts,
        orders=orders,
        missing_profiles=MissingProfiles(
            publisher=publisher,
            registrations=data.registrations,
            orders=orders,
            policy=ProfileRetryPolicy(
                max_attempts=settings.max_profile_attempts, wait_seconds=settings.profile_retry_seconds
            ),
        ),
        base=base,
        validator=AdapterValidator(
            reader=HardenedSafetensorsReader(),
            base=base,
            limits=ValidationLimits(max_lora_rank=settings.max_lora_rank, max_eager_bytes=settings.max_eager_bytes),
        ),
        sources=_build_sources(settings, unpack=unpack_limited),
        unpack=unpack_limited,
        taken_names=taken_names,
    )


def _build_sources(settings: RegistrySettings, *, unpack: ArchiveUnpacker) -> dict[SourceKind, AdapterSource]:
    limits = FetchLimits(max_bytes=settings.max_upload_bytes, max_seconds=settings.max_fetch_seconds)
    return {
        SourceKind.PATH: LocalFolderSource(allowed_folders=settings.allowed_local_dirs, limits=limits, unpack=unpack),
        SourceKind.HUB: HubSource(
            is_allowed=settings.allow_hub,
            limits=limits,
            cache=settings.data_dir / "hub",
            token=settings.hub_token.get_secret_value() if settings.hub_token else None,
        ),
        SourceKind.OBJECT: ObjectStoreSource(
            allowed_prefixes=settings.allowed_object_stores, limits=limits, unpack=unpack
        ),
        SourceKind.URL: UrlSource(allowed_hosts=settings.allowed_url_hosts, limits=limits, unpack=unpack),
    }


def _public_name(base_model: str) -> str:
    """A folder's name, or a hub id as it is."""
    folder = Path(base_model)
    return folder.resolve().name if folder.is_dir() else base_model
