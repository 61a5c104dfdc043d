#!/usr/bin/env bash
# Boots a bare Debian, in memory. The caller has created mount and process namespaces, and in FOLDER the socket `proxy`
# and the files sources.list and apt.conf. Usage: boot_debian.sh FOLDER REPOSITORY
set -euo pipefail
folder=$1 repository=$2
memory=$folder/memory root=$folder/memory/root archives=/var/cache/apt/archives

mount --make-rprivate /
mkdir "$memory" && mount -t tmpfs tmpfs "$memory"
mkdir -p "$root$archives" "$memory"/{downloaded,work} $archives
# What this machine has downloaded is not downloaded again.
mount -t overlay overlay -o "lowerdir=$archives,upperdir=$memory/downloaded,workdir=$memory/work" "$root$archives"

# What a server has beyond the minimum, and a certificate authority in place of the public one.
packages=systemd-sysv,dbus,sudo,git,ca-certificates,pebble
read -r _ mirror release _ <"$folder/sources.list"
debootstrap --variant=minbase --include=$packages "$release" "$root" "$mirror" >"$folder/debootstrap.log" 2>&1 ||
    { touch "$folder/no-mirror" && exit 1; }
cp "$folder/sources.list" "$root/etc/apt/sources.list"
cp "$folder/apt.conf" "$root/etc/apt/apt.conf.d/99machine"
printf '%s\n' force-unsafe-io 'path-exclude=/usr/share/doc/*' 'path-exclude=/usr/share/man/*' >"$root/etc/dpkg/dpkg.cfg.d/quick"

# The way to the package registries.
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/authorities.pem"
printf '[Socket]\nListenStream=127.0.0.1:3142\n[Install]\nWantedBy=sockets.target\n' >"$root/etc/systemd/system/proxy.socket"
printf '[Service]\nExecStart=/lib/systemd/systemd-socket-proxyd /mnt/proxy\n' >"$root/etc/systemd/system/proxy.service"

# The certificate authority, which certbot uses.
mkdir -p "$root/etc/pebble" "$root/root/.config/letsencrypt"
openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout "$root/etc/pebble/key.pem" -out "$root/etc/pebble/certificate.pem" 2>/dev/null
printf 'server = https://127.0.0.1:14000/dir\nno-verify-ssl = true\n' >"$root/root/.config/letsencrypt/cli.ini"
cat >"$root/etc/pebble/config.json" <<'JSON'
{"pebble": {
    "listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000",
    "certificate": "/etc/pebble/certificate.pem", "privateKey": "/etc/pebble/key.pem", "httpPort": 80, "tlsPort": 443
}}
JSON
cat >"$root/etc/systemd/system/authority.service" <<'UNIT'
[Service]
Environment=PEBBLE_VA_NOSLEEP=1 PEBBLE_WFE_NONCEREJECT=0
ExecStart=/usr/bin/pebble -config /etc/pebble/config.json
[Install]
WantedBy=multi-user.target
UNIT
chroot "$root" systemctl --quiet enable proxy.socket authority.service

# A busy machine may take many times as long as usual.
mkdir -p "$root/usr/local/lib/systemd/system/backline-web.service.d" "$root/etc/systemd/system.conf.d"
printf '[Service]\nTimeoutStartSec=900\n' >"$root/usr/local/lib/systemd/system/backline-web.service.d/busy.conf"
printf '[Manager]\nDefaultTimeoutStartSec=900\n' >"$root/etc/systemd/system.conf.d/busy.conf"

# DNS, and an administrator.
echo server >"$root/etc/hostname"
echo '127.0.0.1 localhost server api.example.com' >"$root/etc/hosts"
chroot "$root" useradd --create-home --shell /bin/bash admin
echo 'admin ALL=(ALL) NOPASSWD: ALL
Defaults env_keep += "HTTPS_PROXY NO_PROXY PIP_INDEX_URL REQUESTS_CA_BUNDLE"' >"$root/etc/sudoers.d/admin"

exec systemd-nspawn --quiet --directory="$root" --private-network --register=no --keep-unit \
    --link-journal=no --bind="$folder/proxy:/mnt/proxy" --bind-ro="$repository:/srv/backline.git" --boot --console=pipe
