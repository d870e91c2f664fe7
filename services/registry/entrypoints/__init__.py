"""The doors: REST, gRPC and the Celery task. They translate and decide nothing."""
