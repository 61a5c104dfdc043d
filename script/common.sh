# Sourced by the other scripts: changes to the project's root, and prints the script's first comment for --help.
script=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/$(basename -- "$0")
cd -- "$(dirname -- "$script")/.." || exit 1
case "${1-}" in
-h | --help)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$script"
    exit 0
    ;;
esac
