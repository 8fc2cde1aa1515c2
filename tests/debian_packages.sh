#!/bin/sh
# The Debian packages that tests run against: nginx in front of the gateway, systemd's checks of units, other clocks,
# network namespaces, a PACS, a browser. Installs what is missing; no service is started.
set -eu
missing=""
for package in chromium chromium-driver faketime gcc iproute2 libc6-dev nftables nginx-light orthanc orthanc-dicomweb systemd
do
    dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
[ "$(id -u)" = 0 ] || { echo "As root: apt-get install$missing" >&2; exit 1; }
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi
apt-get update -qq
# shellcheck disable=SC2086  # one word a package
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
# Orthanc listens on every interface: never as a service, nor after the next start of the machine.
if command -v systemctl >/dev/null; then systemctl disable -q orthanc 2>/dev/null || true; fi
update-rc.d orthanc disable >/dev/null 2>&1 || true
