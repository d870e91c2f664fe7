"""The world: disk, Redis, Celery's queue, the hub, archives, safetensors files and the served base model."""
