# Stands for docker.io/library/redis: Debian's Redis, with the user of the official image.
FROM localhost/rootfs
RUN apt-get update \
 && apt-get install -y --no-install-recommends redis-server \
 && rm -rf /var/lib/apt/lists/* \
 && install -d -o 999 -g 999 /data
