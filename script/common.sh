# Sourced by the other scripts: changes to the project's root, and prints the script's first comment for --help.
script=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/$(basename -- "$0")
cd -- "$(dirname -- "$script")/.." || exit 1
case "${1-}" in
-h | --help)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$script"
    exit 0
    ;;
esac

# Installs Debian's packages in the arguments, if that needs no password: PACKAGE, or PACKAGE:PROGRAM if its program
# has another name. Says what is missing in the end.
install_programs() {
    packages=$(missing_packages "$@")
    if [ "$packages" ] && command -v apt-get >/dev/null; then
        echo "==> Installing $packages(apt-get)."
        sudo=$([ "$(id -u)" = 0 ] || echo "sudo -n")
        log=$(mktemp)
        # shellcheck disable=SC2086 # these are lists of words
        $sudo sh -c 'apt-get -q update && apt-get -qy install --no-install-recommends "$@"' sh $packages \
            </dev/null >"$log" 2>&1 || echo "==> apt-get failed; see $log."
        packages=$(missing_packages "$@")
    fi
    [ -z "$packages" ] || echo "==> Not installed, so what needs them is skipped: $packages"
}

missing_packages() {
    for package; do
        PATH=$PATH:/usr/sbin command -v "${package#*:}" >/dev/null || printf '%s ' "${package%:*}"
    done
}
