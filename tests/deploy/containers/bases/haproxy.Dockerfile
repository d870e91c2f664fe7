# Stands for docker.io/library/haproxy: Debian's HAProxy, run by an ordinary user as the official image does.
FROM localhost/rootfs
RUN apt-get update \
 && apt-get install -y --no-install-recommends haproxy \
 && rm -rf /var/lib/apt/lists/*
USER 10099:10099
