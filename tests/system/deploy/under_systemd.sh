#!/usr/bin/env bash
# Installs Backline in a copy of this machine's root that disappears afterwards, with a systemd of its own, and measures
# restarts, kills, stalled servers, and slow connections there (installed.py). Takes up to six minutes. Needs root,
# systemd-nspawn, MariaDB, Redis, and nginx. Usage: under_systemd.sh
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd -P)
if [ -z "${INSIDE-}" ]; then
    INSIDE=1 exec unshare --mount --net --pid --fork --kill-child --mount-proc "$0"
fi

mount --make-rprivate /
folder=/mnt
mount -t tmpfs tmpfs $folder
mkdir $folder/{changes,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/changes,workdir=$folder/work" $folder/root
root=$folder/root
ip link set lo up

rm -rf $root/opt/backline $root/etc/backline $root/etc/systemd/system/multi-user.target.wants/* && mkdir -p $root/opt/backline
git -C "$project" ls-files -z --cached --others --exclude-standard | tar -C "$project" --null -T - -c | tar -C $root/opt/backline -x
# The installation uses this machine's packages, because there is no network. Python may be in a home directory, which
# the units hide.
venv=$(realpath "$project/.venv")
python=$("$venv/bin/python" -c 'import sys; print(sys.base_prefix)')
ln -s "$venv" $root/opt/backline/.venv
ln -sf /opt/python/bin/python3 "$root$venv/bin/python"
sed -i 's|^home = .*|home = /opt/python/bin|' "$root$venv/pyvenv.cfg"
printf '#!/bin/sh\n' >$root/opt/backline/script/bootstrap
for unit in web scheduler migrate; do
    mkdir $root/etc/systemd/system/backline-$unit.service.d
    printf '[Service]\nEnvironment=LD_LIBRARY_PATH=/opt/python/lib\n' >$root/etc/systemd/system/backline-$unit.service.d/python.conf
done
printf '#!/bin/sh\n' >$root/usr/local/sbin/apt-get && chmod a+x $root/usr/local/sbin/apt-get

ln -s /dev/null $root/etc/systemd/system/systemd-networkd-wait-online.service

cat >$root/etc/systemd/system/proof.service <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/bash /proof.sh
StandardOutput=file:/proof.log
StandardError=inherit
ExecStopPost=/bin/systemctl poweroff --no-block
[Install]
WantedBy=multi-user.target
UNIT
ln -s ../proof.service $root/etc/systemd/system/multi-user.target.wants/proof.service
cat >$root/proof.sh <<'PROOF'
cd /opt/backline
SPOTIFY_CLIENT_SECRET=fedcba9876543210fedcba9876543210 deploy/install \
    --api api.example.com --app https://app.example.com --client-id 0123456789abcdef0123456789abcdef
systemctl --no-pager --lines=0 status backline-web backline-scheduler | grep -E 'Loaded|Active|●'
journalctl -u backline-web -u backline-migrate -o cat --no-pager | tail -40
cd / && PYTHONPATH=/opt/backline /opt/backline/.venv/bin/python -m tests.system.deploy.installed
journalctl -u backline-web -o cat --no-pager | grep -c '"Handling signal: term"'
systemctl show backline-web -p NFileDescriptorStore -p NRestarts
PROOF
timeout 900 systemd-nspawn -q -D $root --bind-ro="$python:/opt/python" --register=no --keep-unit --link-journal=no -b --console=pipe systemd.unit=multi-user.target >$folder/console.log 2>&1 || tail -20 $folder/console.log
cat $root/proof.log
