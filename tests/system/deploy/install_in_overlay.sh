#!/usr/bin/env bash
# Runs deploy/install in a copy of this machine's root that disappears afterwards, and uses what it has installed.
# The caller has created mount, network, and process namespaces. Usage: install_in_overlay.sh PROJECT FOLDER
set -euo pipefail
project=$1 folder=$2

mount --make-rprivate /
mount -t tmpfs tmpfs "$folder"
mkdir "$folder"/{changes,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/changes,workdir=$folder/work" "$folder/root"
root=$folder/root
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mkdir -p "$root$project" && mount --bind "$project" "$root$project"
ip link set lo up

# The installation uses this machine's packages, because there is no network: its virtual environment, too.
rm -rf "$root/opt/backline" "$root/etc/backline" && mkdir -p "$root/opt/backline"
git -C "$project" ls-files -z --cached --others --exclude-standard | tar -C "$project" --null -T - -c | tar -C "$root/opt/backline" -x
ln -s "$project/.venv" "$root/opt/backline/.venv"
[ -e "$project/.pipenv" ] && ln -s "$project/.pipenv" "$root/opt/backline/.pipenv"
for path in "$project/.venv" "$(realpath "$project/.venv/bin/python")"; do
    while [ "$path" != / ]; do
        path=$(dirname "$path")
        chmod a+x "$root$path" 2>/dev/null || true
    done
done
printf '#!/bin/sh\necho "apt-get $*" >>/tmp/apt-get.log\n' >"$root/usr/local/sbin/apt-get"
chmod a+x "$root/usr/local/sbin/apt-get"

exec chroot "$root" /bin/bash -euo pipefail <<'INSIDE'
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
cd /opt/backline

mkdir -p /run/mysqld /run/redis && chown mysql: /run/mysqld && chown redis: /run/redis
mkdir /tmp/mysql && chown mysql: /tmp/mysql
mariadb-install-db --user=mysql --datadir=/tmp/mysql --auth-root-authentication-method=socket >/dev/null 2>&1
mariadbd --user=mysql --datadir=/tmp/mysql --socket=/run/mysqld/mysqld.sock >/tmp/mysql.log 2>&1 &
until mariadb -e 'SELECT 1' >/dev/null 2>&1; do sleep 0.1; done

echo "--- first installation"
SPOTIFY_CLIENT_SECRET=fedcba9876543210fedcba9876543210 deploy/install \
    --api api.example.com --app https://app.example.com --client-id 0123456789abcdef0123456789abcdef
settings=$(sha256sum .env /etc/backline/* /etc/nginx/nginx.conf /etc/redis/backline.conf)
runuser -u redis -- redis-server /etc/redis/redis.conf --daemonize yes >/dev/null
nginx

# What systemd would do, from the installed units.
start() { # unit
    local unit=/etc/systemd/system/$1 settings=() line
    while read -r line; do settings+=("$line"); done < <(sed -n 's/^Environment=//p' "$unit" | tr ' ' '\n')
    local file
    file=$(sed -n 's/^EnvironmentFile=-//p' "$unit")
    [ -z "$file" ] || settings+=("$(cat "$file")")
    # shellcheck disable=SC2046
    runuser -u backline -- env -i PATH="$PATH" LANG=C.UTF-8 "${settings[@]}" $(sed -n 's/^ExecStart=//p' "$unit")
}
echo "--- migration"
start backline-migrate.service 2>&1 | tail -1
echo "--- web"
start backline-web.service >/tmp/web.log 2>&1 &
start backline-scheduler.service >/tmp/scheduler.log 2>&1 &
call() { curl -sS -m 60 --cacert /etc/backline/certificate.pem --resolve api.example.com:443:127.0.0.1 "$@"; }
for _ in $(seq 300); do
    [ "$(call -o /dev/null -w '%{http_code}' https://api.example.com/api/session)" = 200 ] && break
    sleep 0.2
done
call -f -H 'X-Requested-With: curl' -H 'Content-Type: application/json' https://api.example.com/api/register \
    -d '{"username": "ada", "email": "ada@example.com", "password": "a long sentence is best"}'
echo "--- doctor"
runuser -u backline -- env -i PATH="$PATH" APP_ENV=production .venv/bin/flask doctor || true
echo "--- backup"
deploy/backup /tmp/backups
sign_in() {
    call -o /dev/null -w '%{http_code}\n' -H 'X-Requested-With: curl' -H 'Content-Type: application/json' \
        https://api.example.com/api/login -d '{"login": "ada", "password": "a long sentence is best"}'
}
sign_in
mariadb backline -e 'DELETE FROM users'
deploy/restore /tmp/backups/*.sql.gz </dev/null 2>&1 || true # the services run
echo "--- restore"
pkill -u backline && while pgrep -u backline >/dev/null; do sleep 0.1; done
mkdir /tmp/observed
printf '#!/bin/sh\necho "$@" >>/tmp/arguments\nexec %s "$@"\n' "$(command -v runuser)" >/tmp/observed/runuser
chmod a+x /tmp/observed/runuser
PATH=/tmp/observed:$PATH deploy/restore /tmp/backups/*.sql.gz </dev/null 2>&1 || true # without a network, the doctor fails
start backline-web.service >/tmp/web.log 2>&1 &
until [ "$(call -o /dev/null -w '%{http_code}' https://api.example.com/api/session)" = 200 ]; do sleep 0.2; done
sign_in
echo "--- arguments"
cat /tmp/arguments
echo "--- second installation"
deploy/install
[ "$settings" = "$(sha256sum .env /etc/backline/* /etc/nginx/nginx.conf /etc/redis/backline.conf)" ] && echo "settings: unchanged"
echo "--- listening"
ss -ltnH | awk '{print $4}'
echo "--- permissions"
stat -c '%n %a %U' .env /etc/backline/migrate.env /etc/backline/key.pem /etc/redis/backline.conf
runuser -u backline -- mariadb backline -e 'DROP TABLE users' 2>&1 || true
redis-cli ping 2>&1 || true
url=$(sed -n 's/^REDIS_URL=//p' .env)
for command in 'CONFIG GET dir' 'FLUSHALL' 'KEYS *' 'ACL LIST' 'EVAL redis.call("CONFIG","GET","dir") 0' 'EVAL redis.call("FLUSHALL") 0' \
    'SET elsewhere 1' 'EVAL redis.call("SET","elsewhere","1") 0' 'PUBLISH session:a 1'; do
    read -ra words <<<"$command"
    echo "redis $command: $(redis-cli -u "$url" --no-auth-warning "${words[@]}" 2>&1)"
done
systemctl is-enabled backline-web.service backline-scheduler.service
grep -c scheduler_started /tmp/scheduler.log || cat /tmp/scheduler.log
cat /tmp/apt-get.log 2>/dev/null || true
INSIDE
